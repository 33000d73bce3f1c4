//! What a backend can and cannot do by its nature. Nothing here is believed: every line is held against the
//! port by a property of the suite, and `docs/io.md` is printed from it.

use pollux_dataplane::port::Capabilities;

/// A backend's description.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nature {
    /// The backend's name, in test names and in the table.
    pub(crate) name: &'static str,
    /// What is at the other end of its wire in these tests.
    pub(crate) far_end: &'static str,
    /// What opening it needs.
    pub(crate) needs: Needs,
    /// What may leave by it unfinished: what [`Port::capabilities`](pollux_dataplane::port::Port) has to say.
    pub(crate) out: Capabilities,
    /// How what a sender has left to the device arrives by it.
    pub(crate) into: Into,
    /// Bytes of the shortest frame that it sends.
    pub(crate) shortest: usize,
    /// Bytes of the longest complete frame that it sends, on a device whose MTU is 1500 where it has one.
    pub(crate) longest: Longest,
    /// What becomes of frames that are shorter or longer.
    pub(crate) unfit: Unfit,
    /// Whether a frame of 9014 bytes arrives whole, where the device lets it through.
    pub(crate) jumbo: Jumbo,
    /// What becomes of frames that come while nobody receives.
    pub(crate) full_receive: FullReceive,
    /// What becomes of frames that are sent while the far end takes none.
    pub(crate) full_transmit: FullTransmit,
    /// What becomes of frames that come while the pool is empty.
    pub(crate) empty_pool: EmptyPool,
    /// What the caller is told when its device is down.
    pub(crate) down: Down,
    /// Whether a worker can sleep until a frame comes.
    pub(crate) sleep: Sleep,
}

/// What opening a port needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// A network namespace of one's own: any user in a user namespace.
    Namespace,
    /// As [`Namespace`](Needs::Namespace), and a `/dev/net/tun` that is open to the user.
    Tun,
    /// The machine's root: `bpf()`.
    Root,
}

/// How unfinished frames arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Into {
    /// Frames with a partial checksum.
    pub(crate) checksums: Arrival,
    /// Super-frames, whose checksum is partial as well.
    pub(crate) super_frames: Arrival,
}

/// How an unfinished frame arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Arrival {
    /// As it is, with its mark.
    Marked,
    /// Finished by the port: the checksum completed, the super-frame cut.
    Finished,
    /// As it is, and nothing says that it is not complete: the wire has no marks.
    Bare,
    /// Cut before it reaches the port, its pieces' checksums partial or complete.
    Cut,
    /// Not: the port counts it as lost.
    Missed,
}

/// The longest complete frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Longest {
    /// So many bytes.
    Bytes(usize),
    /// The port does not ask.
    Any,
}

/// A frame of 9014 bytes on its way in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Jumbo {
    /// Arrives, in as many chunks as it needs.
    Whole,
    /// Does not come: the device refuses such an MTU while the port is open.
    DeviceRefuses,
    /// Is lost and counted by the port if it is longer than its MTU at opening and a buffer, and arrives otherwise.
    Missed,
}

/// Frames that nobody receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FullReceive {
    /// The newest are lost and counted by the port.
    Missed,
    /// The newest are lost and counted by the interface.
    Interface,
    /// The newest are lost and counted by the port; the interface counts the same ones.
    Both,
    /// They wait; nothing is lost.
    Waits,
    /// They stay with their sender.
    SenderWaits,
}

/// Frames that the far end does not take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FullTransmit {
    /// Stay with the caller.
    Refused,
    /// There is no such thing: whatever is sent is gone at once.
    Never,
}

/// Frames for which there is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EmptyPool {
    /// Lost and counted by the port.
    Missed,
    /// They wait for memory.
    Waits,
    /// They need none: a frame brings its own.
    BringTheirOwn,
    /// They come in the sender's memory, which is the same pool: there are none then.
    SendersMemory,
}

/// Frames that the device does not take, now or later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unfit {
    /// Stay with the caller, and hold up no other.
    StayWithCaller,
    /// Are taken, lost behind the port and counted there.
    LostBehind,
}

/// A device that is down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Down {
    /// Sending and receiving fail with an error.
    Told,
    /// Sending fails with an error, receiving finds nothing.
    ToldWhenSending,
    /// As told, but what is sent first after the fall waits in the port until the device is back.
    ToldLater,
    /// There is no device that could be down.
    NoDevice,
}

/// A worker without work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sleep {
    /// Sleeps on a descriptor.
    Descriptor,
    /// Can only poll.
    Polls,
}

impl Longest {
    /// Whether a frame of `len` bytes may leave.
    pub(crate) fn carries(self, len: usize) -> bool {
        match self {
            Longest::Bytes(bytes) => len <= bytes,
            Longest::Any => true,
        }
    }
}

/// Everything arrives as it is, with its mark.
pub(crate) const MARKED: Into = Into { checksums: Arrival::Marked, super_frames: Arrival::Marked };

/// Everything can be left to the device.
pub(crate) const EVERYTHING: Capabilities = Capabilities { partial_checksum: true, gso: true, udp_gso: true };

/// Only complete frames.
pub(crate) const COMPLETE: Capabilities =
    Capabilities { partial_checksum: false, gso: false, udp_gso: false };
