//! Bursts of packets for the host: none is lost, and every frame is a packet of the flow it began with.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::collections::HashMap;
use vnic_core::association::FlowKey;
use vnic_core::coalesce::{Coalescer, HostPacket, Joins};
use vnic_core::frames::{HostFrames, Piece};
use vnic_core::packet::{flow_key, parse_ip, parse_plain};
use vnic_fuzz::record;

thread_local! {
    static COALESCER: RefCell<Coalescer> = RefCell::default();
}

/// What stands behind the TCP or UDP header, of as many packets as it is of.
fn payload(frame: &[u8], hdr_len: usize) -> Vec<u8> {
    frame[hdr_len..].to_vec()
}

fuzz_target!(|data: &[u8]| {
    COALESCER.with_borrow_mut(|coalescer| {
        let mut data = data;
        let mut output = HostFrames::default();
        let mut count = 0;
        let mut sent: HashMap<FlowKey, Vec<u8>> = HashMap::new();
        let mut packets = Vec::new();
        while let Some((_, bytes)) = record(&mut data) {
            let mut frame = vec![2; 12];
            frame.extend(if bytes.first().is_some_and(|first| first >> 4 == 4) { [8, 0] } else { [0x86, 0xdd] });
            frame.extend(bytes);
            let Ok(header) = parse_plain(&frame, 14, frame.len()) else { continue };
            let flow = flow_key(&frame, &header);
            let start = output.plain.len();
            output.plain.extend(&frame[..header.end]);
            packets.push(HostPacket { frame: Piece { start, length: header.end }, origin: count, flow });
            sent.entry(flow).or_default().extend(frame.get(header.payload() + 4..header.end).unwrap_or_default());
            count += 1;
        }
        for packet in &packets {
            coalescer.push(&output.plain, *packet, Joins { tcp: true, udp: true });
        }
        coalescer.finish(&mut output);
        let mut total = 0;
        for frame in &output.frames {
            let whole = output.joined(frame);
            let header = parse_ip(&whole, 14, whole.len()).expect("a packet for the host");
            assert_eq!(header.end, whole.len());
            let segments = match frame.vnet.gso_type {
                0 => 1,
                _ => payload(&whole, frame.vnet.hdr_len.into()).len().div_ceil(frame.vnet.gso_size.into()),
            };
            total += segments;
            let first = &packets[frame.origin as usize];
            assert_eq!(flow_key(&whole, &header), first.flow);
            // A packet that was not joined is one that was sent.
            let data = &whole[whole.len().min(usize::from(frame.vnet.hdr_len).max(header.payload() + 4))..];
            let all = &sent[&first.flow];
            let known = data.is_empty() || all.windows(data.len()).any(|part| part == data);
            assert!(frame.vnet.gso_type != 0 || known);
        }
        assert_eq!(total, packets.len());
    });
});
