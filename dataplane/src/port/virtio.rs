//! The virtio-net header (virtio 1.2, section 5.1.6), as AF_PACKET and TAP put it before every frame:
//! what the kernel left to the device, and the other way round.
//!
//! Both use the legacy form: 10 bytes, in the byte order of the machine.

use crate::packet::{ChecksumState, Gso, GsoKind, Offload};

/// Bytes of the header.
pub(super) const HEADER_LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Bytes of a UDP header, and the least of a TCP header.
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;

/// The kind of super-frame is not known to Pollux: it could neither be sent on nor be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct UnknownGso;

/// What the header says about the frame that begins with `frame`; `inserted` bytes were put into the frame
/// after the kernel wrote the header (a VLAN tag), before the network header.
pub(super) fn read(header: &[u8; HEADER_LEN], frame: &[u8], inserted: u16) -> Result<Offload, UnknownGso> {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let checksum = if header[0] & NEEDS_CHECKSUM != 0 {
        ChecksumState::Partial { start: field(6).saturating_add(inserted), offset: field(8) }
    } else if header[0] & DATA_VALID != 0 {
        ChecksumState::Verified
    } else {
        ChecksumState::Unknown
    };
    let kind = match header[1] & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCP4 => Some(GsoKind::Tcp4),
        GSO_TCP6 => Some(GsoKind::Tcp6),
        GSO_UDP => Some(GsoKind::Udp),
        _ => return Err(UnknownGso),
    };
    let gso = kind.map(|kind| Gso {
        kind,
        ecn: header[1] & GSO_ECN != 0,
        size: field(4),
        // The kernel's own figure is how much of the frame its buffer holds in one piece, which may be
        // more than the headers.
        header_len: match checksum {
            ChecksumState::Partial { start, .. } => header_len(kind, start, frame),
            _ => None,
        }
        .unwrap_or_else(|| field(2).saturating_add(inserted)),
    });
    Ok(Offload { checksum, gso })
}

/// Where the payload begins, given where the transport header does.
fn header_len(kind: GsoKind, start: u16, frame: &[u8]) -> Option<u16> {
    let transport = frame.get(usize::from(start)..)?;
    let len = match kind {
        GsoKind::Udp => UDP_HEADER,
        GsoKind::Tcp4 | GsoKind::Tcp6 => usize::from(*transport.get(12)? >> 4) * 4,
    };
    let least = match kind {
        GsoKind::Udp => UDP_HEADER,
        GsoKind::Tcp4 | GsoKind::Tcp6 => TCP_HEADER,
    };
    (len >= least).then(|| start + len as u16)
}

/// The header that says `offload`.
pub(super) fn write(offload: &Offload) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    let partial = match offload.checksum {
        ChecksumState::Partial { start, offset } => {
            put(6, start);
            put(8, offset);
            true
        }
        ChecksumState::Unknown | ChecksumState::Verified => false,
    };
    if let Some(gso) = offload.gso {
        put(2, gso.header_len);
        put(4, gso.size);
        header[1] = match gso.kind {
            GsoKind::Tcp4 => GSO_TCP4,
            GsoKind::Tcp6 => GSO_TCP6,
            GsoKind::Udp => GSO_UDP,
        };
        if gso.ecn {
            header[1] |= GSO_ECN;
        }
    }
    if partial {
        header[0] = NEEDS_CHECKSUM;
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_with_tcp_at(start: usize, tcp_header_len: u8) -> Vec<u8> {
        let mut frame = vec![0; start + 60];
        frame[start + 12] = (tcp_header_len / 4) << 4;
        frame
    }

    #[test]
    fn pt_04_what_is_written_is_what_is_read() {
        let tcp = Offload {
            checksum: ChecksumState::Partial { start: 34, offset: 16 },
            gso: Some(Gso { kind: GsoKind::Tcp4, ecn: true, size: 1448, header_len: 66 }),
        };
        assert_eq!(read(&write(&tcp), &frame_with_tcp_at(34, 32), 0), Ok(tcp));
        let udp = Offload {
            checksum: ChecksumState::Partial { start: 54, offset: 6 },
            gso: Some(Gso { kind: GsoKind::Udp, ecn: false, size: 1200, header_len: 62 }),
        };
        assert_eq!(read(&write(&udp), &[0; 100], 0), Ok(udp));
        let plain = Offload::default();
        assert_eq!(write(&plain), [0; HEADER_LEN]);
        assert_eq!(read(&write(&plain), &[], 0), Ok(plain));
    }

    #[test]
    fn pt_04_the_header_length_is_that_of_the_headers_not_of_the_kernels_buffer() {
        let mut header = write(&Offload {
            checksum: ChecksumState::Partial { start: 54, offset: 16 },
            gso: Some(Gso { kind: GsoKind::Tcp6, ecn: false, size: 1428, header_len: 74 }),
        });
        header[2..4].copy_from_slice(&200u16.to_ne_bytes());
        let offload = read(&header, &frame_with_tcp_at(58, 20), 4).unwrap();
        assert_eq!(offload.checksum, ChecksumState::Partial { start: 58, offset: 16 });
        assert_eq!(offload.gso.unwrap().header_len, 78);
    }

    #[test]
    fn pt_04_a_checked_frame_is_marked_and_an_unknown_kind_refused() {
        let mut header = [0; HEADER_LEN];
        header[0] = DATA_VALID;
        assert_eq!(read(&header, &[], 0).unwrap().checksum, ChecksumState::Verified);
        header[1] = 3; // UFO, which no kernel sends today
        assert_eq!(read(&header, &[], 0), Err(UnknownGso));
    }
}
