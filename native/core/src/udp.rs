//! A UDP socket as a wire: ESP in datagrams, many in a call (UDP_SEGMENT, UDP_GRO).
//!
//! Law: as `vnic.ports.udp`, whose socket it is: ESP packets between the wire's two addresses and nothing else. What is
//! not an ESP packet of the peer (a keepalive, IKE, somebody else's datagram) is put aside for Python to judge.
//!
//! ```text
//! card      [ Ethernet | IP, local -> remote | ESP … ]
//! socket                                     [ ESP … ][ ESP … ][ ESP … ]    one call
//! ```
//!
//! Source: RFC 3948 §2; udp(7), include/uapi/linux/udp.h.

use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use crate::checksum;
use crate::frames::{Frame, Frames, Vnet};
use crate::io::{Counts, Wire, last_errno, piece, room};

/// Python has to look at what was put aside ([`UdpSocket::take_aside`]).
pub const ASIDE: i32 = libc::ENOMSG;

const ETHERNET: usize = 14;
const ESP: u8 = 50;
const ESP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;
/// UDP_MAX_SEGMENTS of the kernels that have the fewest.
const MAX_SEGMENTS: usize = 64;
const MAX_PAYLOAD: usize = 65_000;
const DATAGRAM: usize = 65_536;
/// No further call is made in a burst that has taken so many bytes.
const BURST_BYTES: usize = 256 * 1024;
const BURST_FRAMES: usize = 512;
const CONTROL_WORDS: usize = 16;
/// Calls of one burst: what is of no use costs a call too, and must not keep the caller here.
const BURST_CALLS: usize = 256;

/// A datagram, or several of one size, that Python has to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// The payload.
    pub data: Vec<u8>,
    /// Bytes of each datagram but the last.
    pub size: usize,
    /// Traffic class they came with.
    pub traffic_class: u8,
    /// Who sent them.
    pub sender: SocketAddr,
}

/// A UDP socket with UDP_GRO and IP_RECVTOS or IPV6_RECVTCLASS.
pub struct UdpSocket {
    descriptor: RawFd,
    peer: SocketAddr,
    /// Ethernet and IP header in front of what comes in, but for lengths, traffic class and checksum.
    front: Vec<u8>,
    /// Addresses of what may go out, as in its IP header.
    ends: Vec<u8>,
    counts: Counts,
    not_esp: u64,
    strangers: u64,
    follow: bool,
    datagram: Vec<u8>,
    aside: Vec<Aside>,
    pieces: Vec<libc::iovec>,
}

// SAFETY: the pointers in `pieces` are made and used within one call of `send`.
unsafe impl Send for UdpSocket {}
// SAFETY: every method that touches `pieces` takes `&mut self`.
unsafe impl Sync for UdpSocket {}

impl UdpSocket {
    /// Read and write through a non-blocking descriptor, which stays the caller's.
    ///
    /// `local` and `remote` are of one family; frames that come in go from `gateway` to `host`. Without `follow` the
    /// datagrams of others than the peer end here.
    pub fn new(
        descriptor: RawFd,
        local: IpAddr,
        remote: IpAddr,
        peer: SocketAddr,
        host: [u8; 6],
        gateway: [u8; 6],
        follow: bool,
    ) -> Self {
        let mut front = [host, gateway].concat();
        let mut ends = Vec::new();
        match (local, remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                front.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, HOP_LIMIT, ESP, 0, 0]);
                front.extend(remote.octets());
                front.extend(local.octets());
                ends.extend(local.octets());
                ends.extend(remote.octets());
            }
            (local, remote) => {
                let octets = |address| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                front.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, ESP, HOP_LIMIT]);
                front.extend(octets(remote));
                front.extend(octets(local));
                ends.extend(octets(local));
                ends.extend(octets(remote));
            }
        }
        Self {
            descriptor,
            peer,
            front,
            ends,
            counts: Counts::default(),
            not_esp: 0,
            strangers: 0,
            follow,
            datagram: vec![0; DATAGRAM],
            aside: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Forget the descriptor; the caller closes it.
    pub fn close(&mut self) {
        self.descriptor = -1;
    }

    /// Send to another address from now on, and take datagrams from there.
    pub fn set_peer(&mut self, peer: SocketAddr) {
        self.peer = peer;
    }

    /// Send frames for the card to another host.
    pub fn set_host(&mut self, host: [u8; 6]) {
        self.front[..6].copy_from_slice(&host);
    }

    /// What passed and what was lost since the last call.
    pub fn take_counts(&mut self) -> Counts {
        mem::take(&mut self.counts)
    }

    /// Frames that were not ESP packets between the two ends, since the last call.
    pub fn take_not_esp(&mut self) -> u64 {
        mem::take(&mut self.not_esp)
    }

    /// Datagrams of others than the peer that ended here, since the last call.
    pub fn take_strangers(&mut self) -> u64 {
        mem::take(&mut self.strangers)
    }

    /// Datagrams that Python has to judge, since the last call, in order.
    pub fn take_aside(&mut self) -> Vec<Aside> {
        mem::take(&mut self.aside)
    }

    fn ipv6(&self) -> bool {
        self.ends.len() == 32
    }

    /// The ESP packet of a frame between the two ends, and its traffic class.
    fn esp_of<'a>(&self, frame: &'a [u8]) -> Option<(&'a [u8], u8)> {
        let start = self.front.len();
        if frame.len() < start + ESP_HEADER {
            return None;
        }
        let length = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        let (end, traffic_class) = if self.ipv6() {
            if frame[12..14] != [0x86, 0xdd] || frame[20] != ESP || frame[22..54] != self.ends[..] {
                return None;
            }
            (start + length(18), (frame[14] & 0x0f) << 4 | frame[15] >> 4)
        } else {
            let whole = frame[20] & 0x3f == 0 && frame[21] == 0;
            if frame[12..15] != [0x08, 0x00, 0x45] || frame[23] != ESP || frame[26..34] != self.ends[..] || !whole {
                return None;
            }
            (ETHERNET + length(16), frame[15])
        };
        let packet = frame.get(start..end)?;
        (packet.len() >= ESP_HEADER).then_some((packet, traffic_class))
    }

    /// Send the datagrams whose pieces stand in `pieces`, all but the last of `size`, in one call.
    fn send_run(&mut self, size: usize, traffic_class: u8) -> Result<(), i32> {
        let (address, address_length) = socket_address(self.peer);
        let mut control = [0u64; CONTROL_WORDS];
        let mut used = 0;
        if self.pieces.len() > 1 {
            let size = u16::try_from(size).expect("a datagram is shorter than 64 KiB");
            used += put_control(&mut control, used, libc::SOL_UDP, UDP_SEGMENT, &size.to_ne_bytes());
        }
        if traffic_class != 0 {
            let (level, kind) =
                if self.ipv6() { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) } else { (libc::IPPROTO_IP, libc::IP_TOS) };
            used += put_control(&mut control, used, level, kind, &i32::from(traffic_class).to_ne_bytes());
        }
        // SAFETY: a message of zeros has no name, pieces or control data.
        let mut message = unsafe { mem::zeroed::<libc::msghdr>() };
        message.msg_name = (&raw const address).cast_mut().cast();
        message.msg_namelen = address_length;
        message.msg_iov = self.pieces.as_mut_ptr();
        message.msg_iovlen = self.pieces.len() as _;
        message.msg_control = if used == 0 { std::ptr::null_mut() } else { control.as_mut_ptr().cast() };
        message.msg_controllen = used as _;
        let count = self.pieces.len() as u64;
        // SAFETY: name, pieces and control data are readable for their lengths and outlive the call.
        let sent = unsafe { libc::sendmsg(self.descriptor, &raw const message, libc::MSG_DONTWAIT) };
        let front = self.front.len() as u64;
        let outcome = if let Ok(sent) = u64::try_from(sent) {
            self.counts.tx_frames += count;
            self.counts.tx_bytes += sent + count * front;
            Ok(())
        } else {
            self.counts.tx_lost += count;
            match last_errno() {
                // The path has grown narrow, or the socket is closed: Python looks.
                errno @ (libc::EMSGSIZE | libc::EINVAL | libc::EBADF | libc::ENOTSOCK) => Err(errno),
                _ => Ok(()),
            }
        };
        self.pieces.clear();
        outcome
    }

    /// Take what one call read: datagrams of `size` bytes, the last may be shorter.
    fn take(&mut self, read: usize, size: usize, traffic_class: u8, frames: &mut Frames) {
        let datagram = mem::take(&mut self.datagram);
        for packet in datagram[..read].chunks(size.max(1)) {
            if packet.len() < ESP_HEADER || packet[..4] == [0; 4] {
                self.put_aside(packet, packet.len(), traffic_class, self.peer);
                continue;
            }
            let start = frames.bytes.len();
            frames.bytes.extend_from_slice(&self.front);
            frames.bytes.extend_from_slice(packet);
            let front = &mut frames.bytes[start..start + self.front.len()];
            if self.front.len() == ETHERNET + 40 {
                front[14] |= traffic_class >> 4;
                front[15] |= traffic_class << 4;
                front[18..20].copy_from_slice(&(packet.len() as u16).to_be_bytes());
            } else {
                front[15] = traffic_class;
                front[16..18].copy_from_slice(&((packet.len() + 20) as u16).to_be_bytes());
                let sum = checksum::checksum(&front[ETHERNET..]);
                front[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            let origin = u32::try_from(frames.frames.len()).expect("a burst is short");
            let length = frames.bytes.len() - start;
            frames.frames.push(Frame { start, length, vnet: Vnet::default(), origin });
            self.counts.rx_frames += 1;
            self.counts.rx_bytes += length as u64;
        }
        self.datagram = datagram;
    }

    fn put_aside(&mut self, data: &[u8], size: usize, traffic_class: u8, sender: SocketAddr) {
        self.aside.push(Aside { data: data.to_vec(), size, traffic_class, sender });
    }
}

impl Wire for UdpSocket {
    fn receive(&mut self, frames: &mut Frames) -> Result<bool, i32> {
        frames.clear();
        for _ in 0..BURST_CALLS {
            if frames.bytes.len() >= BURST_BYTES || frames.frames.len() >= BURST_FRAMES {
                break;
            }
            // SAFETY: zero is a value of all their fields.
            let (mut name, mut message) = unsafe { mem::zeroed::<(libc::sockaddr_storage, libc::msghdr)>() };
            let mut control = [0u64; CONTROL_WORDS];
            let mut into = room(&mut self.datagram);
            message.msg_name = (&raw mut name).cast();
            message.msg_namelen = libc::socklen_t::try_from(mem::size_of_val(&name)).expect("128");
            message.msg_iov = &raw mut into;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = mem::size_of_val(&control) as _;
            // SAFETY: name, piece and control data are writable for their lengths and outlive the call.
            let read = unsafe { libc::recvmsg(self.descriptor, &raw mut message, libc::MSG_DONTWAIT) };
            let Ok(read) = usize::try_from(read) else {
                match last_errno() {
                    libc::EAGAIN => return self.end(false),
                    errno @ (libc::EBADF | libc::ENOTSOCK) => return Err(errno),
                    // An ICMP error of an earlier datagram: that one is lost, no more.
                    _ => {
                        self.counts.rx_lost += 1;
                        continue;
                    }
                }
            };
            let (size, traffic_class) = controls(&control, message.msg_controllen, read);
            let sender = sender_of(&name);
            if message.msg_flags & libc::MSG_TRUNC != 0 {
                self.counts.rx_lost += 1;
            } else if sender == Some(self.peer) {
                self.take(read, size, traffic_class, frames);
            } else if !self.follow {
                self.strangers += read.div_ceil(size.max(1)).max(1) as u64;
            } else if let Some(sender) = sender {
                let data = self.datagram[..read].to_vec();
                self.put_aside(&data, size, traffic_class, sender);
            }
            if !self.aside.is_empty() {
                return Err(ASIDE);
            }
        }
        self.end(true)
    }

    fn send(&mut self, frames: &Frames) -> Result<(), i32> {
        let (mut size, mut total, mut traffic_class, mut last) = (0, 0, 0, 0);
        let mut outcome = Ok(());
        for frame in &frames.frames {
            let Some((packet, its_class)) = self.esp_of(frames.bytes_of(frame)) else {
                self.not_esp += 1;
                continue;
            };
            let length = packet.len();
            let fits = length <= size
                && last == size
                && its_class == traffic_class
                && self.pieces.len() < MAX_SEGMENTS
                && total + length <= MAX_PAYLOAD;
            if !self.pieces.is_empty() && !fits {
                outcome = outcome.and(self.send_run(size, traffic_class));
            }
            if self.pieces.is_empty() {
                (size, total, traffic_class) = (length, 0, its_class);
            }
            self.pieces.push(piece(packet));
            last = length;
            total += length;
        }
        if !self.pieces.is_empty() {
            outcome = outcome.and(self.send_run(size, traffic_class));
        }
        outcome
    }
}

impl UdpSocket {
    fn end(&self, more: bool) -> Result<bool, i32> {
        if self.aside.is_empty() { Ok(more) } else { Err(ASIDE) }
    }
}

/// Size of each datagram, and traffic class, as the kernel tells them beside `read` bytes.
fn controls(control: &[u64; CONTROL_WORDS], length: usize, read: usize) -> (usize, u8) {
    let (mut size, mut traffic_class) = (read, 0);
    let head = mem::size_of::<libc::cmsghdr>();
    let mut at = 0;
    while at + head <= length {
        // SAFETY: `at + head` lies within `control`, of which the kernel has filled `length` bytes; it is aligned.
        let (message, data) = unsafe {
            let start = control.as_ptr().cast::<u8>().add(at);
            (&*start.cast::<libc::cmsghdr>(), start.add(head))
        };
        let whole = message.cmsg_len;
        if whole < head || at + whole > length {
            break;
        }
        match (message.cmsg_level, message.cmsg_type, whole - head) {
            (libc::SOL_UDP, UDP_GRO, 4..) => {
                // SAFETY: the message holds four bytes at least.
                let told = unsafe { data.cast::<i32>().read_unaligned() };
                size = usize::try_from(told).unwrap_or(read);
            }
            (libc::IPPROTO_IP, libc::IP_TOS, 1..) => {
                // SAFETY: the message holds a byte at least.
                traffic_class = unsafe { data.read() };
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 4..) => {
                // SAFETY: the message holds four bytes at least.
                let told = unsafe { data.cast::<i32>().read_unaligned() };
                traffic_class = told.to_le_bytes()[0];
            }
            _ => {}
        }
        at += whole.next_multiple_of(mem::size_of::<usize>());
    }
    (size, traffic_class)
}

/// Write a control message at `at`; gives the bytes it takes.
fn put_control(control: &mut [u64; CONTROL_WORDS], at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
    let head = mem::size_of::<libc::cmsghdr>();
    let taken = (head + data.len()).next_multiple_of(mem::size_of::<usize>());
    assert!(at + taken <= mem::size_of_val(control));
    // SAFETY: the message and its data lie within `control` and are aligned.
    unsafe {
        let start = control.as_mut_ptr().cast::<u8>().add(at);
        let message = &mut *start.cast::<libc::cmsghdr>();
        message.cmsg_len = (head + data.len()) as _;
        message.cmsg_level = level;
        message.cmsg_type = kind;
        std::ptr::copy_nonoverlapping(data.as_ptr(), start.add(head), data.len());
    }
    taken
}

/// An address as the kernel takes it, and its length.
fn socket_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: zero is a value of all its fields.
    let mut storage = unsafe { mem::zeroed::<libc::sockaddr_storage>() };
    let place = &raw mut storage;
    let length = match address {
        SocketAddr::V4(address) => {
            // SAFETY: the storage is large enough and aligned for every kind of address.
            let name = unsafe { &mut *place.cast::<libc::sockaddr_in>() };
            name.sin_family = libc::AF_INET as _;
            name.sin_port = address.port().to_be();
            name.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
            mem::size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            // SAFETY: as above.
            let name = unsafe { &mut *place.cast::<libc::sockaddr_in6>() };
            name.sin6_family = libc::AF_INET6 as _;
            name.sin6_port = address.port().to_be();
            name.sin6_addr.s6_addr = address.ip().octets();
            name.sin6_scope_id = address.scope_id();
            mem::size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, libc::socklen_t::try_from(length).expect("an address is short"))
}

/// Who sent a datagram; None: an address of no family that is known here.
fn sender_of(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what it is.
            let name = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            Some(SocketAddr::from((name.sin_addr.s_addr.to_ne_bytes(), u16::from_be(name.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says what it is.
            let name = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            Some(SocketAddr::from((name.sin6_addr.s6_addr, u16::from_be(name.sin6_port))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as Socket;
    use std::os::fd::AsRawFd;

    use super::*;

    const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const GATEWAY: [u8; 6] = [2, 0x76, 0x6e, 0x69, 0x63, 0];

    struct Ends {
        near: Socket,
        far: Socket,
        wire: UdpSocket,
    }

    /// The wire over loopback, and a plain socket at its other end.
    fn ends(local: &str, remote: &str) -> Ends {
        let near = Socket::bind((local, 0)).unwrap();
        let far = Socket::bind((remote, 0)).unwrap();
        near.set_nonblocking(true).unwrap();
        let (one, class): (i32, (i32, i32)) = if local.contains(':') {
            (1, (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS))
        } else {
            (1, (libc::IPPROTO_IP, libc::IP_RECVTOS))
        };
        for (level, option) in [(libc::SOL_UDP, UDP_GRO), class] {
            // SAFETY: the value is readable for its length.
            let set = unsafe { libc::setsockopt(near.as_raw_fd(), level, option, (&raw const one).cast(), 4) };
            assert_eq!(set, 0);
        }
        let wire = UdpSocket::new(
            near.as_raw_fd(),
            local.parse().unwrap(),
            remote.parse().unwrap(),
            far.local_addr().unwrap(),
            HOST,
            GATEWAY,
            true,
        );
        Ends { near, far, wire }
    }

    /// A frame as the card makes it, and its ESP packet.
    fn frame(wire: &UdpSocket, text: &[u8], traffic_class: u8) -> Vec<u8> {
        let mut made = wire.front.clone();
        let (esp, start) = ([&[0, 0, 0x10, 1, 0, 0, 0, 9], text].concat(), made.len());
        if wire.ipv6() {
            made[14] |= traffic_class >> 4;
            made[15] |= traffic_class << 4;
            made[18..20].copy_from_slice(&(esp.len() as u16).to_be_bytes());
            made[22..54].copy_from_slice(&wire.ends);
        } else {
            made[15] = traffic_class;
            made[16..18].copy_from_slice(&((esp.len() + 20) as u16).to_be_bytes());
            made[26..34].copy_from_slice(&wire.ends);
        }
        assert_eq!(made.len(), start);
        made.extend(esp);
        made
    }

    fn burst(frames: &[Vec<u8>]) -> Frames {
        let mut burst = Frames::default();
        for frame in frames {
            burst.push(frame, Vnet::default(), 0);
        }
        burst
    }

    fn datagrams(socket: &Socket, count: usize) -> Vec<Vec<u8>> {
        let mut room = vec![0; 70_000];
        (0..count)
            .map(|_| {
                let read = socket.recv(&mut room).unwrap();
                room[..read].to_vec()
            })
            .collect()
    }

    #[test]
    fn packets_go_out_as_datagrams_and_come_back_as_the_frames_they_were() {
        for (local, remote) in [("127.0.0.1", "127.0.0.2"), ("::1", "::1")] {
            let mut ends = ends(local, remote);
            let sizes: Vec<usize> = [200; 70].into_iter().chain([7, 1200, 1200, 0, 1400]).collect();
            let texts: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(at, size)| vec![at as u8; *size]).collect();
            let made: Vec<Vec<u8>> = texts.iter().map(|text| frame(&ends.wire, text, 0)).collect();
            assert_eq!(ends.wire.send(&burst(&made)), Ok(()));
            let start = ends.wire.front.len();
            let got = datagrams(&ends.far, made.len());
            assert!(got.iter().zip(&made).all(|(one, frame)| *one == frame[start..]));
            let counts = ends.wire.take_counts();
            assert_eq!(counts.tx_frames, made.len() as u64);
            assert_eq!(counts.tx_bytes, made.iter().map(|frame| frame.len() as u64).sum::<u64>());

            let near = ends.near.local_addr().unwrap();
            for one in &got {
                ends.far.send_to(one, near).unwrap();
            }
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            while seen.len() < got.len() {
                assert!(ends.wire.receive(&mut frames).is_ok());
                assert!(!frames.frames.is_empty());
                seen.extend(frames.frames.iter().map(|one| frames.bytes_of(one).to_vec()));
            }
            for (one, esp) in seen.iter().zip(&got) {
                assert_eq!((&one[..6], &one[6..12], &one[start..]), (&HOST[..], &GATEWAY[..], &esp[..]));
                if start == 34 {
                    assert_eq!(usize::from(u16::from_be_bytes([one[16], one[17]])), one.len() - 14);
                    // RFC 1071: a header with a good checksum sums to all ones.
                    let sum: u32 =
                        one[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
                    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
                } else {
                    assert_eq!(usize::from(u16::from_be_bytes([one[18], one[19]])), one.len() - 54);
                }
            }
        }
    }

    #[test]
    fn traffic_class_goes_both_ways() {
        for (local, remote) in [("127.0.0.1", "127.0.0.2"), ("::1", "::1")] {
            let mut there = ends(local, remote);
            let mut back = ends(remote, local);
            there.wire.set_peer(back.near.local_addr().unwrap());
            back.wire.set_peer(there.near.local_addr().unwrap());
            let sent: Vec<Vec<u8>> = [0x2b, 0x2b, 0].map(|class| frame(&there.wire, b"text", class)).to_vec();
            assert_eq!(there.wire.send(&burst(&sent)), Ok(()));
            let mut frames = Frames::default();
            assert!(back.wire.receive(&mut frames).is_ok());
            let classes: Vec<u8> = frames
                .frames
                .iter()
                .map(|one| frames.bytes_of(one))
                .map(|one| if one[14] >> 4 == 4 { one[15] } else { (one[14] & 15) << 4 | one[15] >> 4 })
                .collect();
            assert_eq!(classes, [0x2b, 0x2b, 0]);
        }
    }

    #[test]
    fn what_is_not_esp_between_the_ends_stays_here() {
        let mut ends = ends("127.0.0.1", "127.0.0.2");
        let good = frame(&ends.wire, b"good", 0);
        let mut others = vec![good[..41].to_vec(), Vec::new(), vec![0; 60]];
        for (at, value) in [(12, 9), (14, 0x46), (20, 0x20), (21, 1), (23, 51), (26, 1), (33, 9), (16, 9)] {
            let mut changed = good.clone();
            changed[at] = value;
            others.push(changed);
        }
        let count = others.len() as u64;
        others.push(good.clone());
        assert_eq!(ends.wire.send(&burst(&others)), Ok(()));
        assert_eq!(datagrams(&ends.far, 1), [good[34..].to_vec()]);
        assert_eq!((ends.wire.take_not_esp(), ends.wire.take_counts().tx_frames), (count, 1));
    }

    #[test]
    fn strangers_keepalives_and_ike_are_put_aside() {
        let mut ends = ends("127.0.0.1", "127.0.0.2");
        let near = ends.near.local_addr().unwrap();
        let stranger = Socket::bind("127.0.0.3:0").unwrap();
        let esp = frame(&ends.wire, b"text", 0)[34..].to_vec();
        let mut frames = Frames::default();
        let cases: [(&Socket, &[u8]); 3] =
            [(&ends.far, &[0xff]), (&ends.far, b"\0\0\0\0IKE_SA_INIT"), (&stranger, &esp)];
        for (sender, data) in cases {
            let from = sender.local_addr().unwrap();
            sender.send_to(data, near).unwrap();
            assert_eq!(ends.wire.receive(&mut frames), Err(ASIDE));
            assert!(frames.frames.is_empty());
            let aside = Aside { data: data.to_vec(), size: data.len(), traffic_class: 0, sender: from };
            assert_eq!(ends.wire.take_aside(), [aside]);
        }
        ends.wire.follow = false;
        for _ in 0..2 * BURST_CALLS {
            stranger.send_to(&esp, near).unwrap();
        }
        assert_eq!(ends.wire.receive(&mut frames), Ok(true));
        assert_eq!(ends.wire.take_strangers(), BURST_CALLS as u64);
        while ends.wire.receive(&mut frames) == Ok(true) {}
        assert!(frames.frames.is_empty() && ends.wire.take_aside().is_empty());
        ends.wire.set_peer(stranger.local_addr().unwrap());
        stranger.send_to(&esp, near).unwrap();
        assert_eq!(ends.wire.receive(&mut frames), Ok(false));
        assert_eq!(frames.bytes_of(&frames.frames[0])[34..], esp);
    }

    #[test]
    fn a_datagram_too_long_for_the_path_is_lost_and_python_is_told() {
        let mut ends = ends("127.0.0.1", "127.0.0.2");
        let long = frame(&ends.wire, &vec![0; 65_000], 0);
        assert_eq!(ends.wire.send(&burst(std::slice::from_ref(&long))), Ok(()));
        let over = frame(&ends.wire, &vec![0; 65_507], 0);
        assert_eq!(ends.wire.send(&burst(&[over])), Err(libc::EMSGSIZE));
        assert_eq!(ends.wire.take_counts().tx_lost, 1);
        ends.wire.close();
        assert_eq!(ends.wire.send(&burst(&[long])), Err(libc::EBADF));
        assert_eq!(ends.wire.receive(&mut Frames::default()), Err(libc::EBADF));
    }
}
