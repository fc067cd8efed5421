//! Frames in and out of descriptors, a burst a call: TAP queues, packet sockets, and the way between them.
//!
//! Law: no allocation in steady state, nothing blocks, nothing is retried for long: a call does at most one burst.
//! Descriptors belong to the Python ports; a [`Tap`] or [`PacketSocket`] that was closed has none and says EBADF.
//! A frame the device does not take is dropped and counted, as the Python ports do; an error that says that the device
//! is gone, or that has to be looked at, is handed back as its errno.
//!
//! ```text
//! from_tap    TAP ─> Card::send ─> wire                    link wire: ─> the other Card::receive ─> its TAP
//! from_wire   wire ─> Card::receive ─> TAP
//! ```
//!
//! Source: Linux Documentation/networking/tuntap.rst, packet(7).

use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::ptr;
use std::time::{Duration, Instant};

use crate::card::Card;
use crate::frames::{Frame, Frames, HostFrame, HostFrames, VNET_LENGTH, Vnet};
use crate::punt::Punt;

/// Longest frame: the kernel caps gso_max_size at 65,536; Ethernet header and tags come on top.
pub const FRAME_LIMIT: usize = 65_536 + 256;

/// How much one call takes at the most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Frames.
    pub frames: usize,
    /// No further frame is read once so many bytes are.
    pub bytes: usize,
}

/// Of a TAP: two superframes of the host, or so many small frames that the control socket stays alive.
pub const TAP_BOUNDS: Bounds = Bounds { frames: 64, bytes: 128 * 1024 };

/// Packets taken from a packet socket in one call: what two superframes become, and room for more.
pub const PACKETS: usize = 256;

/// Bytes of a packet that are received in place; longer ones (superframes of a veth peer) are put together.
const SLOT: usize = 2048 - SLOT_ROOM;

/// Room in front of each slot, for a VLAN tag that has to be put back.
const SLOT_ROOM: usize = 8;

/// How long one wake-up may go on reading: what others wait for on a busy day, a control socket among them.
const SLICE: Duration = Duration::from_micros(if cfg!(test) { 1_000_000 } else { 300 });

const IOV_MAX: usize = 1024;

/// Frames and bytes that passed a port, and frames lost there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames towards the card.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames away from the card.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames lost in reading.
    pub rx_lost: u64,
    /// Frames the device did not take.
    pub tx_lost: u64,
}

/// What the way between two ports needs of a card. The output is appended to what is there.
pub trait Bursts {
    /// Protect a burst of the host; see [`Card::send`].
    fn send_burst(&mut self, host: &Frames, now: f64, wire: &mut Frames, punts: &mut Vec<Punt>);

    /// Open a burst of the wire.
    fn receive_burst(&mut self, wire: &Frames, now: f64, host: &mut HostFrames, punts: &mut Vec<Punt>);
}

/// A device that packets go out of and come in from, in bursts.
pub trait Wire: Send {
    /// Take the frames that wait, at most a burst, in the place of those `frames` held.
    ///
    /// Gives whether more may wait. An error is an errno that Python has to look at; frames read before it are there.
    fn receive(&mut self, frames: &mut Frames) -> Result<bool, i32>;

    /// Send a burst in order. What the device does not take is dropped and counted.
    ///
    /// An error is an errno that says the device is gone.
    fn send(&mut self, frames: &Frames) -> Result<(), i32>;
}

impl Bursts for Card {
    fn send_burst(&mut self, host: &Frames, now: f64, wire: &mut Frames, punts: &mut Vec<Punt>) {
        self.send(host, now, wire, punts);
    }

    fn receive_burst(&mut self, wire: &Frames, now: f64, host: &mut HostFrames, punts: &mut Vec<Punt>) {
        self.receive(wire, now, host, punts);
    }
}

/// The burst that is on its way, and the memory it lies in.
#[derive(Default)]
pub struct Scratch {
    /// What was read of a TAP or of a wire.
    pub read: Frames,
    /// What a card made for the wire.
    pub wire: Frames,
    /// What a card made for the host.
    pub host: HostFrames,
    /// Frames of `read` (from_tap, from_wire) left to the Python engine.
    pub punts: Vec<Punt>,
    /// Frames of `wire` left to the Python engine of the other card of a link.
    pub peer_punts: Vec<Punt>,
}

impl Scratch {
    /// Forget the burst and keep the memory.
    fn clear(&mut self) {
        self.wire.clear();
        self.host.clear();
        self.punts.clear();
        self.peer_punts.clear();
    }

    /// Whether a call has left something to Python.
    fn has_left(&self, moved: &Moved) -> bool {
        !self.punts.is_empty() || !self.peer_punts.is_empty() || moved.read_error != 0 || moved.write_error != 0
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Frames read.
    pub frames: usize,
    /// More may wait.
    pub more: bool,
    /// errno of the port that was read, 0 if there was none.
    pub read_error: i32,
    /// errno of the port written to, 0 if there was none.
    pub write_error: i32,
}

/// Move one burst after the other until nothing waits, something has to be done by Python, or [`SLICE`] is over.
pub fn in_rounds(scratch: &mut Scratch, mut burst: impl FnMut(&mut Scratch) -> Moved) -> Moved {
    let began = Instant::now();
    loop {
        let moved = burst(scratch);
        if !moved.more || scratch.has_left(&moved) || began.elapsed() >= SLICE {
            return moved;
        }
    }
}

/// The same over a link, both ways by turns: what the far host answers at once is there as soon as its TAP was
/// written. `burst` is told whether to move from the near end or from the far one.
///
/// Gives whether the last burst came from the far end.
pub fn in_turns(scratch: &mut Scratch, mut burst: impl FnMut(bool, &mut Scratch) -> Moved) -> (Moved, bool) {
    let began = Instant::now();
    let mut backwards = false;
    // The other end was left before it was empty.
    let mut waits = false;
    loop {
        let moved = burst(backwards, scratch);
        let idle = moved.frames == 0 && !waits;
        if idle || scratch.has_left(&moved) || began.elapsed() >= SLICE {
            return (moved, backwards);
        }
        waits = moved.more;
        backwards = !backwards;
    }
}

/// Read a TAP, protect, and send to a wire.
pub fn tap_to_wire(
    card: &mut impl Bursts,
    tap: &mut Tap,
    wire: &mut (impl Wire + ?Sized),
    now: f64,
    scratch: &mut Scratch,
) -> Moved {
    let mut moved = read_tap(tap, scratch);
    if moved.frames > 0 {
        card.send_burst(&scratch.read, now, &mut scratch.wire, &mut scratch.punts);
        moved.write_error = wire.send(&scratch.wire).err().unwrap_or(0);
    }
    moved
}

/// A card and its TAP.
pub struct End<'a, C: Bursts> {
    /// The card.
    pub card: &'a mut C,
    /// Its TAP.
    pub tap: &'a mut Tap,
}

/// Read a TAP, protect, and have the card at the other end of a link receive and write to its TAP.
///
/// `link` counts what passes the link, as the near end sees it.
pub fn tap_to_tap(
    near: &mut End<impl Bursts>,
    far: &mut End<impl Bursts>,
    link: &mut Counts,
    now: f64,
    scratch: &mut Scratch,
) -> Moved {
    let mut moved = read_tap(near.tap, scratch);
    if moved.frames > 0 {
        near.card.send_burst(&scratch.read, now, &mut scratch.wire, &mut scratch.punts);
        link.tx_frames += scratch.wire.frames.len() as u64;
        link.tx_bytes += scratch.wire.frames.iter().map(|frame| frame.length as u64).sum::<u64>();
        far.card.receive_burst(&scratch.wire, now, &mut scratch.host, &mut scratch.peer_punts);
        moved.write_error = far.tap.write(&scratch.host).err().unwrap_or(0);
    }
    moved
}

/// Read a wire, open, and write to a TAP.
pub fn wire_to_tap(
    card: &mut impl Bursts,
    wire: &mut (impl Wire + ?Sized),
    tap: &mut Tap,
    now: f64,
    scratch: &mut Scratch,
) -> Moved {
    let mut moved = Moved::default();
    scratch.clear();
    match wire.receive(&mut scratch.read) {
        Ok(more) => moved.more = more,
        Err(errno) => moved.read_error = errno,
    }
    moved.frames = scratch.read.frames.len();
    if moved.frames > 0 {
        card.receive_burst(&scratch.read, now, &mut scratch.host, &mut scratch.punts);
        moved.write_error = tap.write(&scratch.host).err().unwrap_or(0);
    }
    moved
}

fn read_tap(tap: &mut Tap, scratch: &mut Scratch) -> Moved {
    let mut moved = Moved::default();
    scratch.clear();
    match tap.read(&mut scratch.read) {
        Ok(more) => moved.more = more,
        Err(errno) => moved.read_error = errno,
    }
    moved.frames = scratch.read.frames.len();
    moved
}

/// errno of the last call that failed.
pub(crate) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

pub(crate) fn piece(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

pub(crate) fn room(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// Errors after which a TAP's descriptor has no device; every other one costs one frame.
fn tap_is_gone(errno: i32) -> bool {
    matches!(errno, libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO)
}

// ------------------------------------------------------------------------------------------------------------- TAP

/// A TAP device with 10-byte little-endian virtio-net headers, one descriptor a queue.
#[derive(Default)]
pub struct Tap {
    queues: Vec<RawFd>,
    first: usize,
    counts: Counts,
    pieces: Vec<libc::iovec>,
    joined: Vec<u8>,
}

// SAFETY: the pointers in `pieces` are made and used within one call of `write`.
unsafe impl Send for Tap {}
// SAFETY: every method that touches `pieces` takes `&mut self`.
unsafe impl Sync for Tap {}

impl Tap {
    /// Read and write through these non-blocking descriptors, which stay the caller's.
    pub fn new(queues: Vec<RawFd>) -> Self {
        Self { queues, ..Self::default() }
    }

    /// Forget the descriptors; the caller closes them.
    pub fn close(&mut self) {
        self.queues.clear();
        self.first = 0;
    }

    /// What passed and what was lost since the last call.
    pub fn take_counts(&mut self) -> Counts {
        mem::take(&mut self.counts)
    }

    /// Take the frames that wait, within [`TAP_BOUNDS`], in the place of those `frames` held. Each call begins with
    /// another queue.
    ///
    /// Gives whether more may wait. An error is an errno after which the device is gone; frames read before it are
    /// there.
    pub fn read(&mut self, frames: &mut Frames) -> Result<bool, i32> {
        frames.frames.clear();
        let wanted = TAP_BOUNDS.bytes + FRAME_LIMIT;
        if frames.bytes.len() < wanted {
            frames.bytes.resize(wanted, 0);
        }
        if self.queues.is_empty() {
            return Err(libc::EBADF);
        }
        let first = self.first;
        self.first = (first + 1) % self.queues.len();
        let mut start = 0;
        for turn in 0..self.queues.len() {
            let queue = self.queues[(first + turn) % self.queues.len()];
            if self.read_queue(queue, frames, &mut start)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Read one queue until it is empty, which gives false, or the burst is full. `start` is the end of the frames.
    fn read_queue(&mut self, descriptor: RawFd, frames: &mut Frames, start: &mut usize) -> Result<bool, i32> {
        let mut header = [0; VNET_LENGTH];
        while frames.frames.len() < TAP_BOUNDS.frames && *start < TAP_BOUNDS.bytes {
            let into = [room(&mut header), room(&mut frames.bytes[*start..*start + FRAME_LIMIT])];
            // SAFETY: both pieces are writable for their length and outlive the call.
            let read = unsafe { libc::readv(descriptor, into.as_ptr(), 2) };
            let Ok(read) = usize::try_from(read) else {
                let errno = last_errno();
                if errno == libc::EAGAIN {
                    return Ok(false);
                }
                if tap_is_gone(errno) {
                    return Err(errno);
                }
                self.counts.rx_lost += 1;
                return Ok(false);
            };
            let length = read.saturating_sub(VNET_LENGTH);
            if read < VNET_LENGTH || length >= FRAME_LIMIT {
                self.counts.rx_lost += 1;
                continue;
            }
            let origin = u32::try_from(frames.frames.len()).expect("a burst is short");
            frames.frames.push(Frame { start: *start, length, vnet: Vnet::parse(&header), origin });
            self.counts.rx_frames += 1;
            self.counts.rx_bytes += length as u64;
            *start += length;
        }
        Ok(true)
    }

    /// Write a burst in order, each frame with one gathering call.
    ///
    /// An error is an errno after which the device is gone.
    pub fn write(&mut self, host: &HostFrames) -> Result<(), i32> {
        for frame in &host.frames {
            let header = frame.vnet.emit();
            let queue = self.queue_of(host, frame)?;
            let head = &host.heads[frame.head.start..frame.head.start + frame.head.length];
            let payload = &host.pieces[frame.first_piece..frame.first_piece + frame.pieces];
            self.pieces.clear();
            self.pieces.push(piece(&header));
            self.pieces.push(piece(head));
            let mut length = head.len();
            if payload.len() > IOV_MAX - 2 {
                self.joined.clear();
                for part in payload {
                    self.joined.extend_from_slice(&host.plain[part.start..part.start + part.length]);
                }
                length += self.joined.len();
                self.pieces.push(piece(&self.joined));
            } else {
                for part in payload {
                    length += part.length;
                    self.pieces.push(piece(&host.plain[part.start..part.start + part.length]));
                }
            }
            self.write_pieces(queue, length)?;
        }
        Ok(())
    }

    /// Write what stands in `pieces`.
    fn write_pieces(&mut self, descriptor: RawFd, length: usize) -> Result<(), i32> {
        let count = i32::try_from(self.pieces.len()).expect("at most IOV_MAX pieces");
        // SAFETY: the pieces lie in memory that the caller holds and that nobody changes meanwhile.
        if unsafe { libc::writev(descriptor, self.pieces.as_ptr(), count) } >= 0 {
            self.counts.tx_frames += 1;
            self.counts.tx_bytes += length as u64;
            return Ok(());
        }
        let errno = last_errno();
        if tap_is_gone(errno) {
            return Err(errno);
        }
        self.counts.tx_lost += 1;
        Ok(())
    }

    fn queue_of(&self, host: &HostFrames, frame: &HostFrame) -> Result<RawFd, i32> {
        match self.queues.len() {
            0 => Err(libc::EBADF),
            1 => Ok(self.queues[0]),
            count => Ok(self.queues[flow_of(host, frame) as usize % count]),
        }
    }
}

impl Wire for Tap {
    fn receive(&mut self, frames: &mut Frames) -> Result<bool, i32> {
        self.read(frames)
    }

    fn send(&mut self, frames: &Frames) -> Result<(), i32> {
        let Some(&descriptor) = self.queues.first() else { return Err(libc::EBADF) };
        for frame in &frames.frames {
            let header = frame.vnet.emit();
            self.pieces.clear();
            self.pieces.push(piece(&header));
            self.pieces.push(piece(frames.bytes_of(frame)));
            self.write_pieces(descriptor, frame.length)?;
        }
        Ok(())
    }
}

/// The flow number of a frame in pieces.
fn flow_of(host: &HostFrames, frame: &HostFrame) -> u32 {
    let head = &host.heads[frame.head.start..frame.head.start + frame.head.length];
    if head.len() >= FLOW_ENDS {
        return flow_number(head);
    }
    let mut front = [0; FLOW_ENDS];
    let mut filled = 0;
    let payload = &host.pieces[frame.first_piece..frame.first_piece + frame.pieces];
    let parts = payload.iter().map(|part| &host.plain[part.start..part.start + part.length]);
    for part in std::iter::once(head).chain(parts) {
        let length = part.len().min(FLOW_ENDS - filled);
        front[filled..filled + length].copy_from_slice(&part[..length]);
        filled += length;
    }
    flow_number(&front[..filled])
}

/// Bytes in which all stands that names a flow.
const FLOW_ENDS: usize = 58;

/// Give a number that all packets of one flow share: addresses and ports as one big-endian number, modulo 65,521;
/// 0 for what shows no flow. Equal to `vnic.ports.tap.flow_number`.
pub fn flow_number(frame: &[u8]) -> u32 {
    let with_ports = |protocol: u8| matches!(protocol, 6 | 17);
    let flow = match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, 0x45, ..] if frame.len() >= 38 => {
            let fragment = frame[20] & 0x3f != 0 || frame[21] != 0;
            &frame[26..if with_ports(frame[23]) && !fragment { 38 } else { 34 }]
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ..] if frame.len() >= FLOW_ENDS => {
            &frame[22..if with_ports(frame[20]) { 58 } else { 54 }]
        }
        _ => return 0,
    };
    flow.iter().fold(0, |number, byte| (number << 8 | u32::from(*byte)) % 65_521)
}

// --------------------------------------------------------------------------------------------------- packet socket

/// What the kernel is told of one message of a burst, and tells of it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Message {
    header: [u8; VNET_LENGTH],
    address: libc::sockaddr_ll,
    /// Space for one `tpacket_auxdata`, aligned as a control message has to be.
    control: [u64; CONTROL_WORDS],
}

const CONTROL_WORDS: usize = 5;
const AUXDATA_LENGTH: usize = mem::size_of::<libc::tpacket_auxdata>();
const VLAN_TPID: u16 = 0x8100;
const VLAN_OFFSET: usize = 12;
const VLAN_TAG: usize = 4;
const PACKET_OUTGOING: u8 = 4;

/// A packet socket with PACKET_VNET_HDR and PACKET_AUXDATA, read and written with recvmmsg and sendmmsg.
pub struct PacketSocket {
    descriptor: RawFd,
    counts: Counts,
    messages: Vec<Message>,
    incoming: Vec<libc::mmsghdr>,
    incoming_pieces: Vec<[libc::iovec; 3]>,
    long: Vec<u8>,
    /// Where `incoming_pieces` point to.
    slots: *const u8,
    headers: Vec<[u8; VNET_LENGTH]>,
    outgoing: Vec<libc::mmsghdr>,
    outgoing_pieces: Vec<[libc::iovec; 2]>,
}

// SAFETY: the pointers are to memory of the socket itself and of the burst it was last given; they are followed only
// by the kernel within `receive` and `send`, which set them first.
unsafe impl Send for PacketSocket {}
// SAFETY: every method takes `&mut self`.
unsafe impl Sync for PacketSocket {}

impl PacketSocket {
    /// Read and write through this non-blocking descriptor, which stays the caller's.
    pub fn new(descriptor: RawFd) -> Self {
        Self {
            descriptor,
            counts: Counts::default(),
            messages: Vec::new(),
            incoming: Vec::new(),
            incoming_pieces: Vec::new(),
            long: Vec::new(),
            slots: ptr::null(),
            headers: Vec::new(),
            outgoing: Vec::new(),
            outgoing_pieces: Vec::new(),
        }
    }

    /// Forget the descriptor; the caller closes it.
    pub fn close(&mut self) {
        self.descriptor = -1;
    }

    /// What passed and what was lost since the last call.
    pub fn take_counts(&mut self) -> Counts {
        mem::take(&mut self.counts)
    }

    /// Have the messages point to the slots of `frames`, if they do not yet.
    fn aim(&mut self, frames: &mut Frames) {
        let wanted = PACKETS * (SLOT_ROOM + SLOT);
        if frames.bytes.len() < wanted {
            frames.bytes.resize(wanted, 0);
        }
        if self.slots == frames.bytes.as_ptr() && !self.incoming.is_empty() {
            return;
        }
        // SAFETY: all of it are numbers and pointers the kernel writes or that are set below; zero is a value of each.
        let (message, header) = unsafe { (mem::zeroed::<Message>(), mem::zeroed::<libc::mmsghdr>()) };
        self.messages.resize(PACKETS, message);
        self.long.resize(PACKETS * FRAME_LIMIT, 0);
        self.incoming.clear();
        self.incoming_pieces.clear();
        for ((message, slot), long) in self
            .messages
            .iter_mut()
            .zip(frames.bytes.chunks_exact_mut(SLOT_ROOM + SLOT))
            .zip(self.long.chunks_exact_mut(FRAME_LIMIT))
        {
            self.incoming_pieces.push([room(&mut message.header), room(&mut slot[SLOT_ROOM..]), room(long)]);
            let mut head = header;
            head.msg_hdr.msg_name = ptr::from_mut(&mut message.address).cast();
            head.msg_hdr.msg_control = message.control.as_mut_ptr().cast();
            head.msg_hdr.msg_iovlen = 3;
            self.incoming.push(head);
        }
        for (head, pieces) in self.incoming.iter_mut().zip(&mut self.incoming_pieces) {
            head.msg_hdr.msg_iov = pieces.as_mut_ptr();
            renew(head);
        }
        self.slots = frames.bytes.as_ptr();
    }

    /// Add what the kernel dropped because the socket was not read fast enough.
    fn count_kernel_drops(&mut self) {
        let mut statistics = [0u32; 2];
        let mut length = libc::socklen_t::try_from(mem::size_of_val(&statistics)).expect("eight");
        // SAFETY: the buffer is writable for `length` bytes.
        let answer = unsafe {
            libc::getsockopt(
                self.descriptor,
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if answer == 0 {
            self.counts.rx_lost += u64::from(statistics[1]);
        }
    }

    /// Take one message over into the burst.
    fn accept(&mut self, index: usize, frames: &mut Frames) {
        let head = &self.incoming[index];
        let message = &self.messages[index];
        if message.address.sll_pkttype == PACKET_OUTGOING {
            return;
        }
        let read = head.msg_len as usize;
        let length = read.saturating_sub(VNET_LENGTH);
        if head.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || read < VNET_LENGTH {
            self.counts.rx_lost += 1;
            return;
        }
        let slot = index * (SLOT_ROOM + SLOT) + SLOT_ROOM;
        let tag = vlan_tag(message, &head.msg_hdr);
        let mut vnet = Vnet::parse(&message.header);
        let (mut start, mut whole) = (slot, length);
        if length > SLOT {
            // The room for a tag goes in front here too.
            start = frames.bytes.len() + VLAN_TAG;
            frames.bytes.extend_from_slice(&[0; VLAN_TAG]);
            frames.bytes.extend_from_within(slot..slot + SLOT);
            frames.bytes.extend_from_slice(&self.long[index * FRAME_LIMIT..][..length - SLOT]);
        }
        if let Some(tag) = tag.filter(|_| length >= VLAN_OFFSET) {
            frames.bytes.copy_within(start..start + VLAN_OFFSET, start - VLAN_TAG);
            start -= VLAN_TAG;
            whole += VLAN_TAG;
            frames.bytes[start + VLAN_OFFSET..][..VLAN_TAG].copy_from_slice(&tag);
            // What is shorter by a tag than it says would be read beyond its end; wrapped lengths cannot come here.
            if vnet.gso_type != 0 {
                vnet.hdr_len = vnet.hdr_len.saturating_add(VLAN_TAG as u16);
            }
            if vnet.flags & 1 != 0 {
                vnet.csum_start = vnet.csum_start.saturating_add(VLAN_TAG as u16);
            }
        }
        let origin = u32::try_from(frames.frames.len()).expect("a burst is short");
        frames.frames.push(Frame { start, length: whole, vnet, origin });
        self.counts.rx_frames += 1;
        self.counts.rx_bytes += whole as u64;
    }
}

/// Make a message ready for the kernel to fill again.
fn renew(head: &mut libc::mmsghdr) {
    head.msg_hdr.msg_namelen = libc::socklen_t::try_from(mem::size_of::<libc::sockaddr_ll>()).expect("twenty");
    head.msg_hdr.msg_controllen = CONTROL_WORDS * mem::size_of::<u64>();
    head.msg_hdr.msg_flags = 0;
}

/// Give the VLAN tag that the kernel took out of a frame.
fn vlan_tag(message: &Message, head: &libc::msghdr) -> Option<[u8; VLAN_TAG]> {
    let control_head = mem::size_of::<libc::cmsghdr>();
    if head.msg_controllen < control_head + AUXDATA_LENGTH {
        return None;
    }
    // SAFETY: the kernel wrote a control message of at least that length into `control`, which is aligned for it; it
    // asks for no other kind than PACKET_AUXDATA.
    let auxdata = unsafe {
        let first: *const libc::cmsghdr = message.control.as_ptr().cast();
        if (*first).cmsg_level != libc::SOL_PACKET || (*first).cmsg_type != libc::PACKET_AUXDATA {
            return None;
        }
        ptr::read_unaligned(first.cast::<u8>().add(control_head).cast::<libc::tpacket_auxdata>())
    };
    if auxdata.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let named = auxdata.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let tpid = if named { auxdata.tp_vlan_tpid } else { VLAN_TPID };
    let ([a, b], [c, d]) = (tpid.to_be_bytes(), auxdata.tp_vlan_tci.to_be_bytes());
    Some([a, b, c, d])
}

impl Wire for PacketSocket {
    fn receive(&mut self, frames: &mut Frames) -> Result<bool, i32> {
        frames.frames.clear();
        frames.bytes.truncate(PACKETS * (SLOT_ROOM + SLOT));
        self.aim(frames);
        let mut attempts = 0;
        let read = loop {
            // SAFETY: every message points to memory that `aim` has just seen to.
            let read = unsafe {
                libc::recvmmsg(
                    self.descriptor,
                    self.incoming.as_mut_ptr(),
                    PACKETS as u32,
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                )
            };
            if let Ok(read) = usize::try_from(read) {
                break read;
            }
            match last_errno() {
                libc::EAGAIN => break 0,
                errno @ (libc::EBADF | libc::ENODEV | libc::ENXIO | libc::ENETDOWN) => return Err(errno),
                // EINVAL: an aggregate that the header cannot express.
                _ => self.counts.rx_lost += 1,
            }
            attempts += 1;
            if attempts == PACKETS {
                break 0;
            }
        };
        for index in 0..read {
            self.accept(index, frames);
            renew(&mut self.incoming[index]);
        }
        self.count_kernel_drops();
        Ok(read == PACKETS)
    }

    fn send(&mut self, frames: &Frames) -> Result<(), i32> {
        self.headers.clear();
        self.headers.extend(frames.frames.iter().map(|frame| frame.vnet.emit()));
        self.outgoing_pieces.clear();
        self.outgoing_pieces.extend(
            frames
                .frames
                .iter()
                .zip(&self.headers)
                .map(|(frame, header)| [piece(header), piece(frames.bytes_of(frame))]),
        );
        self.outgoing.clear();
        for pieces in &mut self.outgoing_pieces {
            // SAFETY: numbers and pointers; zero is a value of each.
            let mut head = unsafe { mem::zeroed::<libc::mmsghdr>() };
            head.msg_hdr.msg_iov = pieces.as_mut_ptr();
            head.msg_hdr.msg_iovlen = 2;
            self.outgoing.push(head);
        }
        let mut next = 0;
        while next < self.outgoing.len() {
            let rest = &mut self.outgoing[next..];
            let count = u32::try_from(rest.len().min(IOV_MAX)).expect("at most IOV_MAX");
            // SAFETY: every message points to memory of this socket and of `frames`, which nobody changes meanwhile.
            let sent = unsafe { libc::sendmmsg(self.descriptor, rest.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
            if let Ok(sent @ 1..) = usize::try_from(sent) {
                for frame in &frames.frames[next..next + sent] {
                    self.counts.tx_frames += 1;
                    self.counts.tx_bytes += frame.length as u64;
                }
                next += sent;
                continue;
            }
            // EMSGSIZE: longer than the device's MTU. EINVAL: no frame. EAGAIN, ENOBUFS: no room.
            let errno = last_errno();
            if matches!(errno, libc::EBADF | libc::ENODEV | libc::ENXIO | libc::ENETDOWN) {
                self.counts.tx_lost += (self.outgoing.len() - next) as u64;
                return Err(errno);
            }
            self.counts.tx_lost += 1;
            next += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::*;
    use crate::frames::Piece;
    use crate::punt::PuntReason;

    /// A pair of sockets that keep frames apart as a TAP does.
    fn pair() -> (OwnedFd, OwnedFd) {
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: room for two descriptors, which nobody else has.
        unsafe {
            assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()), 0);
            let length: i32 = 8 << 20;
            for end in ends {
                let size = mem::size_of_val(&length) as libc::socklen_t;
                let value = (&raw const length).cast();
                assert_eq!(libc::setsockopt(end, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, value, size), 0);
            }
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        }
    }

    fn put(end: &OwnedFd, vnet: Vnet, frame: &[u8]) -> bool {
        let whole = [&vnet.emit()[..], frame].concat();
        // SAFETY: `whole` is readable for its length.
        unsafe { libc::write(end.as_raw_fd(), whole.as_ptr().cast(), whole.len()) == whole.len() as isize }
    }

    fn take(end: &OwnedFd) -> Option<(Vnet, Vec<u8>)> {
        let mut whole = vec![0; FRAME_LIMIT + VNET_LENGTH];
        // SAFETY: `whole` is writable for its length.
        let read = unsafe { libc::read(end.as_raw_fd(), whole.as_mut_ptr().cast(), whole.len()) };
        whole.truncate(usize::try_from(read).ok()?);
        let frame = whole.split_off(VNET_LENGTH);
        Some((Vnet::parse(whole.first_chunk().unwrap()), frame))
    }

    const TCP: Vnet = Vnet { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1448, csum_start: 34, csum_offset: 16 };

    fn frames_of(frames: &Frames) -> Vec<(Vnet, Vec<u8>)> {
        frames.frames.iter().map(|frame| (frame.vnet, frames.bytes_of(frame).to_vec())).collect()
    }

    #[test]
    fn a_tap_gives_frames_with_their_headers_in_order_and_within_its_bounds() {
        let (kernel, ours) = pair();
        let mut tap = Tap::new(vec![ours.as_raw_fd()]);
        let mut frames = Frames::default();
        assert_eq!(tap.read(&mut frames), Ok(false));
        assert!(put(&kernel, TCP, &[7; 30_000]));
        for number in 0..70 {
            assert!(put(&kernel, Vnet::default(), &[number; 60]));
        }
        assert_eq!(tap.read(&mut frames), Ok(true));
        let first = frames_of(&frames);
        assert_eq!(first.len(), TAP_BOUNDS.frames);
        assert_eq!(first[0], (TCP, vec![7; 30_000]));
        assert_eq!(first[1], (Vnet::default(), vec![0; 60]));
        assert!(frames.frames.iter().enumerate().all(|(index, frame)| frame.origin as usize == index));
        assert_eq!(tap.read(&mut frames), Ok(false));
        assert_eq!(frames_of(&frames).last().unwrap().1, [69; 60]);
        let counts = tap.take_counts();
        assert_eq!((counts.rx_frames, counts.rx_bytes), (71, 30_000 + 70 * 60));
        assert_eq!(tap.take_counts(), Counts::default());
    }

    #[test]
    fn a_burst_ends_once_it_has_bytes_enough() {
        let (kernel, ours) = pair();
        let mut tap = Tap::new(vec![ours.as_raw_fd()]);
        for _ in 0..4 {
            assert!(put(&kernel, TCP, &[0; 60_000]));
        }
        let mut frames = Frames::default();
        assert_eq!(tap.read(&mut frames), Ok(true));
        assert_eq!(frames.frames.len(), 3);
        assert_eq!(tap.read(&mut frames), Ok(false));
        assert_eq!(frames.frames.len(), 1);
    }

    #[test]
    fn what_is_no_frame_is_counted_and_passed_over() {
        let (kernel, ours) = pair();
        let mut tap = Tap::new(vec![ours.as_raw_fd()]);
        assert!(put(&kernel, Vnet::default(), &vec![0; FRAME_LIMIT + 1]));
        assert!(put(&kernel, Vnet::default(), b"good"));
        let mut frames = Frames::default();
        assert_eq!(tap.read(&mut frames), Ok(false));
        assert_eq!(frames_of(&frames), [(Vnet::default(), b"good".to_vec())]);
        assert_eq!(tap.take_counts().rx_lost, 1);
    }

    #[test]
    fn every_queue_is_read_and_none_first_for_ever() {
        let ends: Vec<_> = (0..4).map(|_| pair()).collect();
        let mut tap = Tap::new(ends.iter().map(|end| end.1.as_raw_fd()).collect());
        for (number, (kernel, _)) in ends.iter().enumerate() {
            for _ in 0..20 {
                assert!(put(kernel, Vnet::default(), &[number as u8; 60]));
            }
        }
        let mut frames = Frames::default();
        assert_eq!(tap.read(&mut frames), Ok(true));
        let mut seen = frames_of(&frames);
        assert_eq!(seen[0].1[0], 0);
        assert_eq!(tap.read(&mut frames), Ok(false));
        assert_eq!(frames_of(&frames)[0].1[0], 3);
        seen.extend(frames_of(&frames));
        assert_eq!(seen.len(), 80);
    }

    #[test]
    fn a_closed_tap_touches_no_descriptor() {
        let (kernel, ours) = pair();
        let mut tap = Tap::new(vec![ours.as_raw_fd()]);
        tap.close();
        assert!(put(&kernel, Vnet::default(), b"frame"));
        assert_eq!(tap.read(&mut Frames::default()), Err(libc::EBADF));
        assert_eq!(tap.write(&host(&[b"frame"])), Err(libc::EBADF));
        let mut socket = PacketSocket::new(ours.as_raw_fd());
        socket.close();
        assert_eq!(socket.receive(&mut Frames::default()), Err(libc::EBADF));
        assert_eq!(socket.send(&burst(&[b"frame"])), Err(libc::EBADF));
        assert!(take(&kernel).is_none());
    }

    fn burst(frames: &[&[u8]]) -> Frames {
        let mut burst = Frames::default();
        for (index, frame) in frames.iter().enumerate() {
            burst.push(frame, Vnet::default(), index as u32);
        }
        burst
    }

    /// A burst for the host whose frames have four bytes of head and a piece for each further one.
    fn host(frames: &[&[u8]]) -> HostFrames {
        let mut made = HostFrames::default();
        for (index, frame) in frames.iter().enumerate() {
            let head = Piece { start: made.heads.len(), length: frame.len().min(4) };
            made.heads.extend_from_slice(&frame[..head.length]);
            let first_piece = made.pieces.len();
            for byte in &frame[head.length..] {
                // A byte nobody wants between the pieces.
                made.plain.push(0xEE);
                made.pieces.push(Piece { start: made.plain.len(), length: 1 });
                made.plain.push(*byte);
            }
            let pieces = made.pieces.len() - first_piece;
            made.frames.push(HostFrame { vnet: TCP, head, first_piece, pieces, origin: index as u32 });
        }
        made
    }

    #[test]
    fn frames_in_pieces_are_written_whole_however_many_pieces_they_have() {
        let (kernel, ours) = pair();
        let mut tap = Tap::new(vec![ours.as_raw_fd()]);
        let wanted: Vec<Vec<u8>> =
            [3, 4, 5, 1026, 1027, 5000].map(|length| (0..length).map(|byte| byte as u8).collect()).to_vec();
        let burst = host(&wanted.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(tap.write(&burst), Ok(()));
        for frame in &wanted {
            assert_eq!(take(&kernel), Some((TCP, frame.clone())));
        }
        let counts = tap.take_counts();
        assert_eq!((counts.tx_frames, counts.tx_bytes), (6, wanted.iter().map(|one| one.len() as u64).sum()));
    }

    #[test]
    fn what_the_device_does_not_take_is_counted_and_the_rest_is_written() {
        let (kernel, ours) = pair();
        let mut tap = Tap::new(vec![ours.as_raw_fd()]);
        let large = vec![0; 30_000_000];
        let mut wanted = host(&[b"first", b"large", b"last."]);
        wanted.frames[1].head = Piece { start: wanted.heads.len(), length: large.len() };
        wanted.heads.extend_from_slice(&large);
        assert_eq!(tap.write(&wanted), Ok(()));
        assert_eq!(take(&kernel).unwrap().1, b"first");
        assert_eq!(take(&kernel).unwrap().1, b"last.");
        assert_eq!((tap.take_counts().tx_lost, take(&kernel)), (1, None));
    }

    #[test]
    fn flows_have_the_numbers_that_python_gives_them() {
        // Frames by scapy, numbers by vnic.ports.tap.flow_number.
        let udp = "02000000000202000000000108004500001d0001000040118e93c0000201c633640713880035000987e278";
        let tcp = "02000000000202000000000186dd600000000016064020010db800000000000000000000000120010db8000000000000\
                   00000000000200509c400000000000000000500220001e6200007979";
        let fragment = "02000000000202000000000108004500001d0001200040116e93c0000201c633640713880035000987e278";
        for (text, number) in [(udp, 43418), (tcp, 34644), (fragment, 39172)] {
            let frame: Vec<u8> =
                (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
            assert_eq!(flow_number(&frame), number);
            let pieces = host(&[&frame]);
            assert_eq!(flow_of(&pieces, &pieces.frames[0]), number);
            for length in 0..34 {
                assert_eq!(flow_number(&frame[..length]), 0);
            }
        }
    }

    #[test]
    fn a_packet_socket_gives_packets_in_batches_and_long_ones_put_together() {
        let (kernel, ours) = pair();
        let mut socket = PacketSocket::new(ours.as_raw_fd());
        let mut frames = Frames::default();
        assert_eq!(socket.receive(&mut frames), Ok(false));
        let long: Vec<u8> = (0..60_000).map(|byte| byte as u8).collect();
        let edge: Vec<u8> = (0..SLOT).map(|byte| byte as u8).collect();
        let wanted: Vec<(Vnet, &[u8])> =
            vec![(Vnet::default(), b"one"), (TCP, &long), (Vnet::default(), b"two"), (TCP, &edge), (TCP, &long)];
        for _ in 0..2 {
            for (vnet, frame) in &wanted {
                assert!(put(&kernel, *vnet, frame));
            }
            assert_eq!(socket.receive(&mut frames), Ok(false));
            let seen = frames_of(&frames);
            assert_eq!(seen.len(), wanted.len());
            for (one, other) in seen.iter().zip(&wanted) {
                assert!(one.0 == other.0 && one.1 == other.1);
            }
        }
        let counts = socket.take_counts();
        assert_eq!((counts.rx_frames, counts.rx_lost), (10, 0));
    }

    #[test]
    fn a_packet_socket_sends_a_burst_in_order() {
        let (kernel, ours) = pair();
        let mut socket = PacketSocket::new(ours.as_raw_fd());
        let mut wanted = burst(&[b"one", b"two", b"three"]);
        wanted.frames[1].vnet = TCP;
        assert_eq!(socket.send(&wanted), Ok(()));
        for frame in frames_of(&wanted) {
            assert_eq!(take(&kernel), Some(frame));
        }
        assert_eq!((socket.take_counts().tx_frames, take(&kernel)), (3, None));
    }

    /// Copies frames, and punts those that begin with an exclamation mark.
    struct Copying;

    impl Bursts for Copying {
        fn send_burst(&mut self, host: &Frames, _now: f64, wire: &mut Frames, punts: &mut Vec<Punt>) {
            for (index, frame) in (0_u32..).zip(&host.frames) {
                match host.bytes_of(frame) {
                    [b'!', ..] => punts.push(Punt { index, reason: PuntReason::UnknownFlow }),
                    bytes => wire.push(bytes, frame.vnet, index),
                }
            }
        }

        fn receive_burst(&mut self, wire: &Frames, _now: f64, host: &mut HostFrames, punts: &mut Vec<Punt>) {
            for (index, frame) in (0_u32..).zip(&wire.frames) {
                match wire.bytes_of(frame) {
                    [b'?', ..] => punts.push(Punt { index, reason: PuntReason::UnknownSa }),
                    bytes => {
                        let head = Piece { start: host.heads.len(), length: bytes.len() };
                        host.heads.extend_from_slice(bytes);
                        host.frames.push(HostFrame {
                            vnet: frame.vnet,
                            head,
                            first_piece: 0,
                            pieces: 0,
                            origin: index,
                        });
                    }
                }
            }
        }
    }

    fn written(end: &OwnedFd) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| take(end)).map(|(_, frame)| frame).collect()
    }

    #[test]
    fn a_link_carries_a_burst_to_the_other_tap_and_names_what_both_cards_left() {
        let ((near_host, near_fd), (far_host, far_fd)) = (pair(), pair());
        let (mut near, mut far) = (Tap::new(vec![near_fd.as_raw_fd()]), Tap::new(vec![far_fd.as_raw_fd()]));
        for frame in ["one", "!two", "?three", "four"] {
            assert!(put(&near_host, TCP, frame.as_bytes()));
        }
        let (mut link, mut scratch) = (Counts::default(), Scratch::default());
        let mut near_end = End { card: &mut Copying, tap: &mut near };
        let mut far_end = End { card: &mut Copying, tap: &mut far };
        let moved = tap_to_tap(&mut near_end, &mut far_end, &mut link, 0.0, &mut scratch);
        assert_eq!(moved, Moved { frames: 4, ..Moved::default() });
        assert_eq!(written(&far_host), [b"one".to_vec(), b"four".to_vec()]);
        assert_eq!((link.tx_frames, link.tx_bytes), (3, 13));
        let left: Vec<_> = scratch.punts.iter().map(|punt| punt.index).collect();
        let peer_left: Vec<_> = scratch.peer_punts.iter().map(|punt| punt.index).collect();
        assert_eq!((left, peer_left), (vec![1], vec![1]));
        assert_eq!(scratch.read.bytes_of(&scratch.read.frames[1]), b"!two");
        assert_eq!(scratch.wire.bytes_of(&scratch.wire.frames[1]), b"?three");
        let mut near_end = End { card: &mut Copying, tap: &mut near };
        far.close();
        assert!(put(&near_host, TCP, b"five"));
        let mut far_end = End { card: &mut Copying, tap: &mut far };
        let moved = tap_to_tap(&mut near_end, &mut far_end, &mut link, 0.0, &mut scratch);
        assert_eq!((moved.frames, moved.write_error), (1, libc::EBADF));
        assert_eq!((scratch.punts.len(), scratch.peer_punts.len()), (0, 0));
    }

    #[test]
    fn a_link_moves_both_ways_by_turns_until_both_ends_are_empty_or_something_is_left() {
        let ((near_host, near_fd), (far_host, far_fd)) = (pair(), pair());
        let (mut near, mut far) = (Tap::new(vec![near_fd.as_raw_fd()]), Tap::new(vec![far_fd.as_raw_fd()]));
        let (mut link, mut scratch) = (Counts::default(), Scratch::default());
        let mut turn = |scratch: &mut Scratch| {
            let (mut near, mut far) =
                (End { card: &mut Copying, tap: &mut near }, End { card: &mut Copying, tap: &mut far });
            in_turns(scratch, |backwards, scratch| match backwards {
                false => tap_to_tap(&mut near, &mut far, &mut link, 0.0, scratch),
                true => tap_to_tap(&mut far, &mut near, &mut link, 0.0, scratch),
            })
        };
        assert_eq!(turn(&mut scratch), (Moved::default(), false));
        for number in 0..100 {
            assert!(put(&near_host, TCP, &[b'f', number]));
        }
        assert!(put(&far_host, TCP, b"answer"));
        while turn(&mut scratch).0.frames > 0 {}
        assert_eq!(written(&far_host), (0..100).map(|number| vec![b'f', number]).collect::<Vec<_>>());
        assert_eq!(written(&near_host), [b"answer".to_vec()]);
        assert!(put(&near_host, TCP, b"one"));
        assert!(put(&far_host, TCP, b"!two"));
        let (moved, backwards) = turn(&mut scratch);
        assert_eq!((moved.frames, backwards, scratch.punts.len()), (1, true, 1));
        assert_eq!(written(&far_host), [b"one".to_vec()]);
    }

    #[test]
    fn a_wire_and_a_tap_exchange_bursts_both_ways() {
        let ((host, tap_fd), (network, wire_fd)) = (pair(), pair());
        let mut tap = Tap::new(vec![tap_fd.as_raw_fd()]);
        let mut wire = PacketSocket::new(wire_fd.as_raw_fd());
        let mut scratch = Scratch::default();
        for frame in ["one", "!two", "three"] {
            assert!(put(&host, TCP, frame.as_bytes()));
        }
        let moved = tap_to_wire(&mut Copying, &mut tap, &mut wire, 0.0, &mut scratch);
        assert_eq!((moved.frames, moved.more), (3, false));
        assert_eq!(written(&network), [b"one".to_vec(), b"three".to_vec()]);
        for frame in ["four", "?five"] {
            assert!(put(&network, TCP, frame.as_bytes()));
        }
        let moved = wire_to_tap(&mut Copying, &mut wire, &mut tap, 0.0, &mut scratch);
        assert_eq!((moved.frames, scratch.punts.len()), (2, 1));
        assert_eq!(written(&host), [b"four".to_vec()]);
        wire.close();
        let moved = wire_to_tap(&mut Copying, &mut wire, &mut tap, 0.0, &mut scratch);
        assert_eq!((moved.frames, moved.read_error), (0, libc::EBADF));
    }
}
