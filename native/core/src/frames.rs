//! Bursts: many Ethernet frames in one piece of memory.
//!
//! Law: data only. Offsets are bytes from the start of the arena that is named; a burst keeps its memory when it is
//! cleared, so that a burst in steady state allocates nothing.

/// Bytes of a virtio-net header as TAP and packet sockets have it (without `num_buffers`), little endian.
pub const VNET_LENGTH: usize = 10;

/// virtio-net header (Virtual I/O Device 1.2 §5.1.6). All zero: one packet with complete checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vnet {
    /// 1: the checksum is open (NEEDS_CSUM); 2: it was checked (DATA_VALID).
    pub flags: u8,
    /// 0 none, 1 TCPv4, 4 TCPv6, 5 UDP_L4; 0x80 with ECN.
    pub gso_type: u8,
    /// Bytes of all headers of a superframe.
    pub hdr_len: u16,
    /// Payload bytes of each segment of a superframe.
    pub gso_size: u16,
    /// Where the checksum begins, in bytes from the frame start.
    pub csum_start: u16,
    /// Where it is stored, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl Vnet {
    /// Read a header.
    pub fn parse(bytes: &[u8; VNET_LENGTH]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Write a header.
    pub fn emit(&self) -> [u8; VNET_LENGTH] {
        let mut bytes = [0; VNET_LENGTH];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, word) in [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].into_iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Whether the frame is one packet with complete checksums, whatever the other fields say.
    pub fn is_plain(&self) -> bool {
        self.flags & 1 == 0 && self.gso_type & 0x7f == 0
    }
}

/// One frame of [`Frames`].
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Offset of its first byte.
    pub start: usize,
    /// Its bytes.
    pub length: usize,
    /// Its virtio-net header; plain on every frame for the wire.
    pub vnet: Vnet,
    /// Which frame of the burst that went in it was made of.
    pub origin: u32,
}

/// A burst of frames, each in one piece.
#[derive(Default)]
pub struct Frames {
    /// The memory of all frames.
    pub bytes: Vec<u8>,
    /// The frames, in order.
    pub frames: Vec<Frame>,
}

impl Frames {
    /// Forget the frames and keep the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
    }

    /// Append a frame.
    pub fn push(&mut self, frame: &[u8], vnet: Vnet, origin: u32) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame);
        self.frames.push(Frame { start, length: frame.len(), vnet, origin });
    }

    /// The bytes of one frame.
    pub fn bytes_of(&self, frame: &Frame) -> &[u8] {
        &self.bytes[frame.start..frame.start + frame.length]
    }
}

/// A piece of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset of its first byte.
    pub start: usize,
    /// Its bytes.
    pub length: usize,
}

/// One frame of [`HostFrames`]: its headers, then pieces of payload, to be written with one gathering call.
#[derive(Clone, Copy, Debug)]
pub struct HostFrame {
    /// Its virtio-net header.
    pub vnet: Vnet,
    /// Headers, in [`HostFrames::heads`].
    pub head: Piece,
    /// First of its payload pieces in [`HostFrames::pieces`], and how many there are.
    pub first_piece: usize,
    /// Number of payload pieces.
    pub pieces: usize,
    /// Which frame of the burst that went in its first segment was.
    pub origin: u32,
}

/// A burst for the host. Payload stays where it was opened.
#[derive(Default)]
pub struct HostFrames {
    /// The frames, in order.
    pub frames: Vec<HostFrame>,
    /// Ethernet, IP and TCP or UDP headers of the frames.
    pub heads: Vec<u8>,
    /// Where each piece of payload lies in `plain`.
    pub pieces: Vec<Piece>,
    /// What was opened.
    pub plain: Vec<u8>,
}

impl HostFrames {
    /// Forget the frames and keep the memory. What was opened stays readable in `plain` until it is overwritten.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.heads.clear();
        self.pieces.clear();
    }

    /// The bytes of one frame, put together.
    pub fn joined(&self, frame: &HostFrame) -> Vec<u8> {
        let mut whole = self.heads[frame.head.start..frame.head.start + frame.head.length].to_vec();
        for piece in &self.pieces[frame.first_piece..frame.first_piece + frame.pieces] {
            whole.extend_from_slice(&self.plain[piece.start..piece.start + piece.length]);
        }
        whole
    }
}
