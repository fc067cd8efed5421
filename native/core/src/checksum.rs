//! The Internet checksum.
//!
//! Law: a *sum* is an unfolded ones' complement sum of big-endian 16-bit words: sums are added with `+`, and only
//! [`fold`] makes 16 bits of them. Every sum that starts here is below 2^50, so thousands may be added.
//!
//! Source: RFC 1071; RFC 1624 for changes; RFC 8200 §8.1 for the pseudo-header.

use std::net::IpAddr;

/// Sums kept side by side.
const LANES: usize = 8;

/// Sum the 16-bit words of `data`, which is padded with a zero byte when its length is odd. 0 only for data that is
/// all zero.
pub fn sum(data: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if data.len() >= 8 * LANES && is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has what the function asks for.
        return unsafe { sum_avx2(data) };
    }
    sum_lanes(data)
}

/// The same with wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(data: &[u8]) -> u64 {
    sum_lanes(data)
}

#[inline(always)]
fn sum_lanes(data: &[u8]) -> u64 {
    // Words are read in the order of this machine and the result turned once (RFC 1071 §2 (B)); 32-bit words add up
    // to the same (§2 (C)), and eight sums at a time use the registers a vector has.
    let mut lanes = [0_u64; LANES];
    let mut blocks = data.chunks_exact(4 * LANES);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            // A lane would take 2^32 blocks to overflow; a check for it would keep the lanes out of vectors.
            *lane = lane.wrapping_add(u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]])));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut words = blocks.remainder().chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_le_bytes(last));
    u64::from(fold(total).swap_bytes())
}

/// Fold a sum to 16 bits: 0 stays 0, other multiples of 65,535 become 0xFFFF.
pub fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    // Four folds of 64 bits leave no carry.
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// The sum of the same data begun at an odd place, where the bytes of each word are swapped (RFC 1071 §2 (B)).
pub fn swapped(sum: u64) -> u64 {
    u64::from(fold(sum).swap_bytes())
}

/// The checksum field for data of this sum, whose own checksum field is zero.
pub fn complement(sum: u64) -> u16 {
    !fold(sum)
}

/// The checksum field for `data`, whose own checksum field is zero.
pub fn checksum(data: &[u8]) -> u16 {
    complement(sum(data))
}

/// Whether data that holds its own checksum sums up right (RFC 1071 §1 (3)); as the reference, data that is all zero
/// does.
pub fn is_right(data: &[u8]) -> bool {
    matches!(fold(sum(data)), 0 | 0xffff)
}

/// Whether an IPv4 header without options, at `at`, sums up right, as [`is_right`] has it.
///
/// # Panics
/// There are not 20 bytes at `at`.
pub fn ipv4_is_right(bytes: &[u8], at: usize) -> bool {
    let header: &[u8; 20] = bytes[at..].first_chunk().expect("a header of 20 bytes");
    // 32-bit words, in whichever order this machine has them, add up to the same (RFC 1071 §2 (B), (C)).
    let words = header.chunks_exact(4).map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]])));
    matches!(fold(words.sum()), 0 | 0xffff)
}

/// Sum of the pseudo-header of TCP, UDP or ICMPv6 (both families sum alike); `length` is that of header and payload.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let length = length as u64;
    address_sum(source) + address_sum(destination) + u64::from(protocol) + (length >> 16) + (length & 0xffff)
}

fn address_sum(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => {
            let number = u64::from(u32::from(address));
            (number >> 16) + (number & 0xffff)
        }
        IpAddr::V6(address) => address.segments().into_iter().map(u64::from).sum(),
    }
}

/// A checksum field after one 16-bit word that it covers changed from `old` to `new` (RFC 1624 §3, eqn. 3): a wrong
/// checksum stays wrong.
pub fn changed(field: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!field) + u64::from(!old) + u64::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Word by word, as RFC 1071 §4.1 does it.
    fn slow(data: &[u8]) -> u16 {
        let mut total = 0_u32;
        for word in data.chunks(2) {
            total += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    #[test]
    fn a_well_known_ipv4_header_has_its_well_known_checksum() {
        let header: [u8; 20] = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00,
            0xc7,
        ];
        assert_eq!(checksum(&header), 0xb861);
    }

    #[test]
    fn every_length_sums_as_word_by_word() {
        let mut state = 1_u64;
        let data: Vec<u8> = (0..3000)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        for length in 0..400 {
            for start in 0..4 {
                let piece = &data[start..start + length];
                assert_eq!(fold(sum(piece)), slow(piece), "{start} {length}");
            }
        }
        assert_eq!(fold(sum(&data)), slow(&data));
        assert_eq!(fold(sum(&[0xff; 2999])), slow(&[0xff; 2999]));
        assert_eq!(sum(&[0; 65535]), 0);
        assert_eq!(fold(sum(&vec![0xff; 65536])), 0xffff);
    }

    #[test]
    fn a_piece_at_an_odd_place_adds_swapped() {
        let data: Vec<u8> = (0..255).collect();
        for cut in [1, 7, 99, 100] {
            let (left, right) = data.split_at(cut);
            let right = if cut & 1 == 1 { swapped(sum(right)) } else { sum(right) };
            assert_eq!(fold(sum(left) + right), fold(sum(&data)), "{cut}");
        }
    }

    #[test]
    fn folding_keeps_zero_apart_from_multiples_of_65535() {
        assert_eq!(fold(0), 0);
        for times in [1, 2, 65536, 65537, u64::MAX / 65535] {
            assert_eq!(fold(65535 * times), 0xffff, "{times}");
        }
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(u64::MAX - 1), 0xfffe);
    }

    #[test]
    fn an_ipv4_header_is_right_with_its_own_checksum_alone() {
        let mut packet = [
            0xff, 0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
            0xa8, 0x00, 0xc7, 0xff,
        ];
        assert!(ipv4_is_right(&packet, 1));
        for at in 1..21 {
            packet[at] ^= 4;
            assert!(!ipv4_is_right(&packet, 1), "{at}");
            packet[at] ^= 4;
        }
        assert!(ipv4_is_right(&[0; 20], 0));
    }

    #[test]
    fn a_changed_word_changes_the_field_as_computing_it_anew_would() {
        // RFC 1624 §4: 0xCD7A with 0x5555 become 0x3285 is 0xDD2F -> 0x0000.
        assert_eq!(changed(0xdd2f, 0x5555, 0x3285), 0x0000);
        let mut data = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc];
        let before = checksum(&data);
        data[2..4].copy_from_slice(&[0xff, 0x01]);
        assert_eq!(changed(before, 0x5678, 0xff01), checksum(&data));
    }

    #[test]
    fn both_families_have_their_pseudo_header() {
        let four = pseudo_header("192.0.2.1".parse().unwrap(), "198.51.100.2".parse().unwrap(), 6, 0x1_0014);
        assert_eq!(fold(four), slow(&[192, 0, 2, 1, 198, 51, 100, 2, 0, 6, 0, 1, 0, 0x14]));
        let six = pseudo_header("2001:db8::1".parse().unwrap(), "::2".parse().unwrap(), 17, 9);
        assert_eq!(fold(six), fold(0x2001 + 0xdb8 + 1 + 2 + 17 + 9));
    }
}
