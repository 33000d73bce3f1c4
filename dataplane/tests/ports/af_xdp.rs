//! AF_XDP ports on real interfaces: veth pairs, with sockets and AF_PACKET ports at the other ends.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pollux_dataplane::packet::{Burst, ChecksumState, Packet, PortId};
use pollux_dataplane::pool::Pool;
use pollux_dataplane::port::af_packet::{AfPacketPort, Options as PacketOptions};
use pollux_dataplane::port::af_xdp::{AfXdpPort, Mode, Options, Service, Steer, ZeroCopy};
use pollux_dataplane::port::guard::Families;
use pollux_dataplane::port::{Port, finish};

use crate::sandbox::{Namespace, Rights, ip};
use crate::steer::{attach_left_behind, attach_without_link, somebody_elses_program};
use crate::topology::{
    Inbox, MAC_B, PATIENCE, SILENCE, error_of_receive, eventually, is_udp, pod, pool, send_all, send_frame,
    tagged, transfer, udp_frame, veth_pair, wait_until_up, wire,
};
use crate::trial;

pub(crate) fn trials(rights: Rights) -> Vec<Trial> {
    if rights != Rights::Root {
        return vec![trial!(pt_01_af_xdp_without_permission_says_so)];
    }
    vec![
        trial!(pt_03_af_xdp_frames_pass_both_ways_in_the_driver),
        trial!(pt_03_af_xdp_frames_pass_both_ways_in_the_stack),
        trial!(pt_03_one_port_s_chunks_leave_by_another_as_they_are),
        trial!(pt_03_jumbo_frames_are_chains),
        trial!(pt_04_what_a_veth_leaves_to_the_device_is_found_out),
        trial!(pt_04_tcp_passes_by_af_xdp),
        trial!(pt_05_pollux_and_the_kernel_get_what_is_theirs),
        trial!(pt_05_everything_and_nothing),
        trial!(fw_05_af_xdp_counts_what_it_loses),
        trial!(fw_05_what_the_device_cannot_send_stays_with_the_caller),
        trial!(pt_01_queues_are_dealt_out),
        trial!(pt_01_af_xdp_interfaces_that_cannot_be_opened),
        trial!(pt_01_too_little_locked_memory_is_said),
        trial!(pt_01_a_program_of_somebody_else_stays),
        trial!(pt_01_the_program_goes_with_the_port),
        trial!(pt_01_what_a_crash_left_attached_is_replaced),
        trial!(pt_01_an_af_xdp_interface_goes_down_and_comes_back),
        trial!(pt_01_an_af_xdp_interface_goes_away_and_the_others_go_on),
    ]
}

fn open_with(name: &str, port: u16, pool: &'static Pool, options: &Options) -> Inbox<AfXdpPort> {
    let mut ports = AfXdpPort::open(name, PortId(port), pool, options).unwrap();
    assert_eq!(ports.len(), 1);
    Inbox::new(ports.remove(0))
}

fn open(name: &str, port: u16, pool: &'static Pool) -> Inbox<AfXdpPort> {
    open_with(name, port, pool, &Options::default())
}

fn packet_port(name: &str, port: u16, pool: &'static Pool) -> Inbox<AfPacketPort> {
    Inbox::new(AfPacketPort::open(name, PortId(port), pool, PacketOptions::default()).unwrap())
}

/// Whether every chunk comes back; those of frames on their way take a moment.
fn all_free(pool: &'static Pool) {
    assert!(eventually(|| pool.available() == pool.capacity()), "{pool:?}");
}

/// The frame, with the link addresses the other way round.
fn back(frame: &[u8]) -> Vec<u8> {
    [&frame[6..12], &frame[..6], &frame[12..]].concat()
}

fn frames_pass(mode: Mode) {
    let _namespace = veth_pair();
    let pool = pool();
    let (mut a, mut b) =
        (packet_port("va", 1, pool), open_with("vb", 2, pool, &Options { mode, ..Options::default() }));
    assert!(!b.is_zero_copy() && !b.carries_chains());
    let frames: Vec<Vec<u8>> =
        (0..200).map(|number: usize| udp_frame(&vec![number as u8; 18 + number * 7])).collect();
    let packets = |port| frames.iter().map(move |frame| Packet::copy_of(pool, PortId(port), frame).unwrap());
    send_all(&mut *a, packets(1));
    for frame in &frames {
        let packet = b.next(|_| true);
        assert_eq!((&packet.to_vec(), packet.port), (frame, PortId(2)));
        assert_eq!(packet.offload.checksum, ChecksumState::Unknown);
        assert!(packet.is_contiguous());
        // Room for a tunnel's header, as in any received packet.
        let mut packet = packet;
        assert!(packet.prepend(128).is_some());
    }
    send_all(&mut *b, packets(2));
    for frame in &frames {
        assert_eq!(&a.next(|_| true).to_vec(), frame);
    }
    assert_eq!((a.missed(), b.missed()), (0, 0));
    drop((a, b));
    all_free(pool);
}

fn pt_03_af_xdp_frames_pass_both_ways_in_the_driver() {
    frames_pass(Mode::Native);
}

fn pt_03_af_xdp_frames_pass_both_ways_in_the_stack() {
    frames_pass(Mode::Generic);
}

fn pt_03_one_port_s_chunks_leave_by_another_as_they_are() {
    let _namespace = veth_pair();
    ip("link add vc address 02:00:00:00:00:0c type veth peer name vd");
    for name in ["vc", "vd"] {
        ip(&format!("link set {name} up"));
    }
    wait_until_up("vc");
    let pool = pool();
    let mut a = packet_port("va", 1, pool);
    let (mut b, mut c, mut d) = (open("vb", 2, pool), open("vc", 3, pool), packet_port("vd", 4, pool));
    for number in 0..3_000u16 {
        let frame = udp_frame(&number.to_be_bytes());
        send_frame(&mut *a, pool, &frame);
        let packet = b.next(|_| true);
        // The very memory that the kernel received into.
        let (start, len) = pool.region();
        let at = packet.head().as_ptr().addr() - start.as_ptr().addr();
        assert!(at < len && at % 2048 == 256, "{at}");
        send_all(&mut *c, [packet]);
        assert_eq!(d.next(is_udp).to_vec(), frame);
    }
    drop((a, b, c, d));
    all_free(pool);
}

fn pt_03_jumbo_frames_are_chains() {
    let _namespace = veth_pair();
    for name in ["va", "vb"] {
        ip(&format!("link set {name} mtu 9000"));
    }
    let pool = pool();
    for mode in [Mode::Native, Mode::Generic] {
        let mut a = packet_port("va", 1, pool);
        let mut b = open_with("vb", 2, pool, &Options { mode, ..Options::default() });
        assert!(b.carries_chains());
        for len in [18, 1_400, 1_750, 1_751, 2_000, 4_096, 8_972] {
            let frame = udp_frame(&(0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>());
            send_frame(&mut *a, pool, &frame);
            let packet = b.next(|_| true);
            assert!(packet.to_vec() == frame, "{mode:?}, {len} bytes");
            assert_eq!(packet.chunks(), frame.len().div_ceil(1_792));
            // Out again, as it is, and a chain made here.
            send_all(&mut *b, [packet]);
            assert!(a.next(|_| true).to_vec() == frame);
            send_frame(&mut *b, pool, &frame);
            assert!(a.next(|_| true).to_vec() == frame);
        }
        assert_eq!(b.missed(), 0);
        drop((a, b));
        all_free(pool);
    }
}

/// A pod behind an AF_XDP port, which takes what is sent to `MAC_B`.
fn xdp_pod(name: &str, address: &str) -> Namespace {
    let pod = pod(name, address);
    ip(&format!("link set {name} address 02:00:00:00:00:0b"));
    pod
}

fn pt_04_what_a_veth_leaves_to_the_device_is_found_out() {
    let _namespace = veth_pair();
    let pod = xdp_pod("vp", "10.9.0.1/24");
    let pool = pool();
    let mut port = open("vp", 3, pool);
    pod.run(|| {
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:0b dev eth0");
        let socket = UdpSocket::bind("10.9.0.1:4000").unwrap();
        socket.send_to(b"partial", "10.9.0.2:5000").unwrap();
    });
    let mut packet = port.next(is_udp);
    assert_eq!(packet.offload.checksum, ChecksumState::Partial { start: 34, offset: 6 });
    finish::finish_checksum(&mut packet).unwrap();
    let finished = packet.to_vec();
    let expected = udp_frame(b"partial");
    assert_eq!(finished[36..], expected[36..]);
}

fn pt_04_tcp_passes_by_af_xdp() {
    let _namespace = veth_pair();
    let (from, to) = (pod("vp", "10.9.0.1/24"), pod("vq", "10.9.0.2/24"));
    let pool = Pool::new(3 * 4096).unwrap();
    // The pods' own addresses are what the frames are for: everything is taken. A window of TCP fits the rings.
    let options = Options { steer: Steer::Everything, ring: 4096, ..Options::default() };
    let (mut a, mut b) = (open_with("vp", 1, pool, &options), open_with("vq", 2, pool, &options));
    let traffic = transfer(&from, &to, "10.9.0.2:80", 24 << 20, |done| {
        let finish = |mut packet: Packet, out: &mut dyn FnMut(Packet)| {
            finish::finish_checksum(&mut packet).unwrap();
            out(packet);
        };
        wire(&mut *a, &mut *b, &finish, done)
    });
    assert!(traffic.partial > 100 && traffic.longest <= 1_514, "{traffic:?}");
    assert_eq!((a.missed(), b.missed()), (0, 0));
    drop((a, b));
    all_free(pool);
}

fn arp_frame() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 0xa, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0xa, 10, 9, 0, 1]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 9, 0, 2]);
    frame.resize(60, 0);
    frame
}

fn pt_05_pollux_and_the_kernel_get_what_is_theirs() {
    let _namespace = veth_pair();
    ip("addr add 10.9.0.2/24 dev vb");
    let pool = pool();
    let leave = vec![Service { protocol: 17, port: 5001 }];
    let options = Options { steer: Steer::Nothing, leave, ..Options::default() };
    let (mut a, mut b) = (packet_port("va", 1, pool), open_with("vb", 2, pool, &options));
    let socket = |port| {
        let socket = UdpSocket::bind(("10.9.0.2", port)).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket
    };
    let (taken, left) = (socket(5000), socket(5001));
    let hears = |socket: &UdpSocket| socket.recv(&mut [0; 100]).is_ok();
    let to = |port: u16| {
        let mut frame = udp_frame(b"x");
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame[40..42].fill(0); // no checksum
        frame
    };
    // Before Pollux is ready, everything is the kernel's.
    send_frame(&mut *a, pool, &to(5000));
    assert!(hears(&taken));
    assert!(b.next_within(SILENCE, is_udp).is_none());

    let steering = b.steering();
    steering.set(Steer::Unicast(Families::V4)).unwrap();
    send_frame(&mut *a, pool, &to(5000));
    assert_eq!(b.next(is_udp).to_vec(), to(5000));
    assert!(!hears(&taken));
    send_frame(&mut *a, pool, &to(5001));
    assert!(hears(&left));
    assert!(b.next_within(SILENCE, is_udp).is_none());

    // ARP is both's: the kernel answers, and Pollux learns.
    send_frame(&mut *a, pool, &arp_frame());
    assert_eq!(b.next(|packet| packet.head()[12..14] == [8, 6]).to_vec(), arp_frame());
    let answer = a.next(|packet| packet.head()[12..14] == [8, 6]).to_vec();
    assert_eq!(answer[6..12], MAC_B);
    // Groups and VLAN-tagged frames, too.
    let mut group = udp_frame(b"group");
    group[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 1]);
    for frame in [group, tagged(&to(5000))] {
        send_frame(&mut *a, pool, &frame);
        assert_eq!(b.next(|_| true).to_vec(), frame);
    }
    // What is for another address on the link is seen as by AF_PACKET.
    let mut other = to(5000);
    other[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
    send_frame(&mut *a, pool, &other);
    assert_eq!(b.next(|_| true).to_vec(), other);

    steering.set(Steer::Nothing).unwrap();
    send_frame(&mut *a, pool, &to(5000));
    assert!(hears(&taken));
    assert_eq!(b.missed(), 0);
    drop(b);
    steering.set(Steer::Everything).unwrap(); // of nothing
    drop(a);
    all_free(pool);
}

fn pt_05_everything_and_nothing() {
    let _namespace = veth_pair();
    ip("addr add 10.9.0.2/24 dev vb");
    let pool = pool();
    let options = Options { steer: Steer::Everything, ..Options::default() };
    let (mut a, mut b) = (packet_port("va", 1, pool), open_with("vb", 2, pool, &options));
    let mut short = arp_frame();
    short.truncate(20);
    for frame in [arp_frame(), tagged(&udp_frame(b"tagged")), short] {
        send_frame(&mut *a, pool, &frame);
        assert_eq!(b.next(|_| true).to_vec(), frame);
    }
    // The kernel never saw the request.
    assert!(a.next_within(SILENCE, |packet| packet.head()[12..14] == [8, 6]).is_none());
}

fn receive_all(port: &mut impl Port) -> usize {
    let mut received = 0;
    let mut burst = Burst::new();
    loop {
        port.receive(&mut burst).unwrap();
        if burst.is_empty() {
            return received;
        }
        received += burst.drain(..).count();
    }
}

fn fw_05_af_xdp_counts_what_it_loses() {
    const FRAMES: usize = 600;
    let _namespace = veth_pair();
    let pool = pool();
    for mode in [Mode::Native, Mode::Generic] {
        let mut a = packet_port("va", 1, pool);
        let options = Options { mode, ring: 128, ..Options::default() };
        let mut b = open_with("vb", 2, pool, &options);
        let frame = udp_frame(&[5; 30]);
        // In portions that the veth's own queue holds.
        for _ in 0..FRAMES / 50 {
            send_all(&mut *a, (0..50).map(|_| Packet::copy_of(pool, PortId(1), &frame).unwrap()));
            std::thread::sleep(Duration::from_millis(5));
        }
        let lost = (FRAMES - 128) as u64;
        assert!(eventually(|| b.missed() == lost), "{mode:?}: {} missed", b.missed());
        assert_eq!(receive_all(&mut *b), 128);
        send_frame(&mut *a, pool, &frame);
        assert_eq!(b.next(|_| true).to_vec(), frame);
        // A frame that fits no chunk.
        ip("link set va mtu 3000");
        ip("link set vb mtu 3000");
        let mut a = packet_port("va", 1, pool);
        send_frame(&mut *a, pool, &udp_frame(&[6; 1_900]));
        assert!(eventually(|| b.missed() == lost + 1), "{mode:?}: {} missed", b.missed());
        ip("link set va mtu 1500");
        ip("link set vb mtu 1500");
        drop(b);
    }
    // No memory to receive into.
    let small = Pool::new(1).unwrap();
    let mut a = packet_port("va", 1, pool);
    let mut b = open_with("vb", 2, small, &Options { ring: 64, ..Options::default() });
    let held: Vec<Packet> = std::iter::from_fn(|| Packet::new(small, PortId(0)).ok()).collect();
    let frame = udp_frame(&[5; 30]);
    send_all(&mut *a, (0..64).map(|_| Packet::copy_of(pool, PortId(1), &frame).unwrap()));
    let mut kept = Vec::new();
    while kept.len() < 64 {
        kept.push(b.next(|_| true));
    }
    send_frame(&mut *a, pool, &frame);
    assert!(eventually(|| b.missed() == 1));
    drop((held, kept));
    receive_all(&mut *b);
    send_frame(&mut *a, pool, &frame);
    assert_eq!(b.next(|_| true).to_vec(), frame);
    drop((a, b));
    all_free(pool);
    all_free(small);
}

fn fw_05_what_the_device_cannot_send_stays_with_the_caller() {
    let _namespace = veth_pair();
    let pool = pool();
    let (mut a, mut b) = (open("va", 1, pool), packet_port("vb", 2, pool));
    let (short, long) = (udp_frame(&[1; 30]), udp_frame(&[2; 1_500]));
    let endless = vec![3; 40_000];
    let runt = vec![4; 13];
    let mut burst: Burst = [&short, &long, &short, &endless, &runt, &short]
        .into_iter()
        .map(|frame| Packet::copy_of(pool, PortId(0), frame).unwrap())
        .collect();
    a.transmit(&mut burst).unwrap();
    assert_eq!(burst.iter().map(Packet::len).collect::<Vec<_>>(), [long.len(), endless.len(), 13]);
    for _ in 0..3 {
        assert_eq!(b.next(|_| true).to_vec(), short);
    }
    // As long as the interface takes, with a tag and without.
    for frame in [udp_frame(&[2; 1_472]), tagged(&udp_frame(&[2; 1_472]))] {
        send_frame(&mut *a, pool, &frame);
        assert_eq!(b.next(|_| true).to_vec(), frame);
    }
    drop((a, b, burst));
    all_free(pool);
}

fn pt_01_queues_are_dealt_out() {
    let namespace = Namespace::new();
    namespace.enter();
    ip(
        "link add va numtxqueues 3 numrxqueues 3 type veth peer name vb address 02:00:00:00:00:0b numtxqueues 3 numrxqueues 3",
    );
    for name in ["va", "vb"] {
        ip(&format!("link set {name} up"));
    }
    wait_until_up("vb");
    let pool = pool();
    let mut a = packet_port("va", 1, pool);
    for (wanted, expected) in
        [(1, vec![vec![0, 1, 2]]), (2, vec![vec![0, 2], vec![1]]), (8, vec![vec![0], vec![1], vec![2]])]
    {
        let options = Options { ports: wanted, queues: Some(3), ..Options::default() };
        let mut ports = AfXdpPort::open("vb", PortId(2), pool, &options).unwrap();
        assert_eq!(ports.iter().map(|port| port.queues().collect()).collect::<Vec<Vec<_>>>(), expected);
        // Whatever queue a flow's frames come by, some port has them, in order.
        let frames: Vec<Vec<u8>> = (0..200u16)
            .map(|number| {
                let mut frame = udp_frame(&number.to_be_bytes());
                frame[34..36].copy_from_slice(&(number % 40).to_be_bytes());
                frame[40..42].fill(0);
                frame
            })
            .collect();
        send_all(&mut *a, frames.iter().map(|frame| Packet::copy_of(pool, PortId(1), frame).unwrap()));
        let mut received: Vec<Vec<u8>> = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while received.len() < frames.len() {
            assert!(Instant::now() < deadline, "{} of {}", received.len(), frames.len());
            for port in &mut ports {
                let mut burst = Burst::new();
                port.receive(&mut burst).unwrap();
                received.extend(burst.iter().map(Packet::to_vec));
            }
        }
        let flow = |frames: &[Vec<u8>], number: u16| -> Vec<Vec<u8>> {
            frames.iter().filter(|frame| frame[34..36] == number.to_be_bytes()).cloned().collect()
        };
        for number in 0..40 {
            assert!(flow(&received, number) == flow(&frames, number));
        }
        for port in &mut ports {
            send_frame(port, pool, &back(&frames[0]));
            assert_eq!(a.next(|_| true).to_vec(), back(&frames[0]));
        }
        assert_eq!(ports.iter_mut().map(Port::missed).sum::<u64>(), 0);
    }
    let options = Options { queues: Some(2), ..Options::default() };
    assert!(
        message("vb", &options)
            .starts_with("AF_XDP on vb: 2 queues are asked for, and it receives by 3: set their")
    );
    drop(a);
    all_free(pool);
}

fn message(name: &str, options: &Options) -> String {
    let pool = Pool::new(4096).unwrap();
    let message = AfXdpPort::open(name, PortId(0), pool, options).err().expect("an error").to_string();
    assert_eq!(pool.available(), pool.capacity());
    message
}

fn pt_01_af_xdp_without_permission_says_so() {
    let _namespace = veth_pair();
    assert_eq!(
        message("va", &Options::default()),
        "AF_XDP on va: no permission for bpf(): run as root of the machine (CAP_BPF and CAP_NET_ADMIN; a user \
         namespace's root has neither)"
    );
}

fn pt_01_af_xdp_interfaces_that_cannot_be_opened() {
    let _namespace = veth_pair();
    let options = Options::default();
    assert_eq!(message("nope0", &options), "no such interface: nope0");
    assert_eq!(message("lo", &options), "AF_XDP on lo: not an Ethernet interface");
    ip("link add vd type bridge");
    assert_eq!(
        message("vd", &options),
        "AF_XDP on vd: its driver, bridge, has no native XDP: use mode generic"
    );
    assert_eq!(
        message("va", &Options { zero_copy: ZeroCopy::Required, ..Options::default() }),
        "AF_XDP on va: its driver, veth, has no zero-copy: leave zero-copy out"
    );
    assert!(
        message("va", &Options { ring: 100, ..Options::default() }).contains("rings of 100: 64 to 32768")
    );
    assert!(
        message("va", &Options { ring: 8192, ..Options::default() })
            .contains("its 1 queues take 8192 packet buffers to receive into, and 4096 of 4096 are free")
    );
    // The peer's frames would not fit what the driver gives the program.
    ip("link set vb mtu 9000");
    let text = message("va", &options);
    assert!(
        text.contains("the MTU of va, or of its peer, is over what its driver, veth, takes with XDP"),
        "{text}"
    );
    // A peer that sends by more queues than frames are received by.
    ip("link add vx numrxqueues 1 numtxqueues 1 type veth peer name vy numtxqueues 4 numrxqueues 4");
    assert!(message("vx", &options).contains("too few queues"), "{}", message("vx", &options));
}

fn pt_01_too_little_locked_memory_is_said() {
    let namespace = veth_pair();
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK, 64 << 10, limit.1).unwrap();
    // In a thread that ends with it: the capability is a thread's.
    let text = namespace.run(|| {
        without_ipc_lock();
        message("va", &Options::default())
    });
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK, limit.0, limit.1).unwrap();
    assert_eq!(
        text,
        "AF_XDP on va: the limit of locked memory (RLIMIT_MEMLOCK, 64 KiB) is below the 8192 KiB of the packet buffers: \
         raise it (ulimit -l, LimitMEMLOCK=), or run with CAP_IPC_LOCK"
    );
}

/// Takes `CAP_IPC_LOCK` from the calling thread.
fn without_ipc_lock() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let mut sets = [[0u32; 3]; 2]; // effective, permitted, inheritable; low words first
    // SAFETY: the kernel reads the header and writes the two sets, as this version has them.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) }, 0);
    sets[0][0] &= !(1 << 14);
    // SAFETY: the kernel reads both.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, &raw const sets) }, 0);
}

fn has_program(interface: &str) -> bool {
    ip(&format!("-d link show {interface}")).contains("prog/xdp")
}

fn pt_01_a_program_of_somebody_else_stays() {
    let _namespace = veth_pair();
    attach_without_link("va", somebody_elses_program().as_raw_fd());
    let text = message("va", &Options::default());
    assert!(
        text.starts_with("AF_XDP on va: an XDP program of somebody else is attached already (number "),
        "{text}"
    );
    assert!(text.contains(", their_filter): "), "{text}");
    assert!(text.contains("detach it (ip link set dev va xdp off"), "{text}");
    assert!(has_program("va"));
    ip("link set dev va xdp off");
    let pool = pool();
    let port = open("va", 1, pool);
    let text = message("va", &Options::default());
    assert!(text.contains("another Pollux steers its frames (XDP program "), "{text}");
    drop(port);
    all_free(pool);
}

fn pt_01_the_program_goes_with_the_port() {
    let _namespace = veth_pair();
    let pool = pool();
    let port = open("va", 1, pool);
    assert!(has_program("va"));
    drop(port);
    assert!(eventually(|| !has_program("va")));
    drop(open("va", 1, pool));
    all_free(pool);
}

fn pt_01_what_a_crash_left_attached_is_replaced() {
    let _namespace = veth_pair();
    let pool = pool();
    attach_left_behind("va");
    assert!(has_program("va"));
    let (mut a, mut b) = (open("va", 1, pool), packet_port("vb", 2, pool));
    let frame = back(&udp_frame(b"after"));
    send_frame(&mut *b, pool, &frame);
    assert_eq!(a.next(is_udp).to_vec(), frame);
    drop((a, b));
    assert!(eventually(|| !has_program("va")));
}

fn pt_01_an_af_xdp_interface_goes_down_and_comes_back() {
    let _namespace = veth_pair();
    let pool = pool();
    let (mut a, mut b) = (packet_port("va", 1, pool), open("vb", 2, pool));
    ip("link set vb down");
    assert_eq!(error_of_receive(&mut b).raw_os_error(), Some(libc::ENETDOWN));
    let frame = udp_frame(&[1; 30]);
    let mut burst: Burst = [Packet::copy_of(pool, PortId(0), &frame).unwrap()].into_iter().collect();
    assert_eq!(b.transmit(&mut burst).unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
    assert_eq!(burst.len(), 1);
    ip("link set vb up");
    wait_until_up("va");
    wait_until_up("vb");
    send_all(&mut *b, burst);
    assert_eq!(a.next(is_udp).to_vec(), frame);
    assert!(a.next_within(SILENCE, is_udp).is_none(), "sent twice");
    send_frame(&mut *a, pool, &frame);
    assert_eq!(b.next(is_udp).to_vec(), frame);
    drop((a, b));
    all_free(pool);
}

fn pt_01_an_af_xdp_interface_goes_away_and_the_others_go_on() {
    let _namespace = veth_pair();
    ip("link add vc type veth peer name vd address 02:00:00:00:00:0b");
    for name in ["vc", "vd"] {
        ip(&format!("link set {name} up"));
    }
    wait_until_up("vd");
    let pool = pool();
    // The first port's socket is the one whose memory the second shares.
    let (mut b, mut d) = (open("vb", 2, pool), open("vd", 4, pool));
    ip("link del va");
    assert_eq!(error_of_receive(&mut b).to_string(), "interface vb is gone");
    let mut burst: Burst =
        [Packet::copy_of(pool, PortId(0), &udp_frame(b"x")).unwrap()].into_iter().collect();
    assert_eq!(b.transmit(&mut burst).unwrap_err().to_string(), "interface vb is gone");
    assert_eq!(burst.len(), 1);
    let mut c = packet_port("vc", 3, pool);
    send_frame(&mut *c, pool, &udp_frame(b"on"));
    assert_eq!(d.next(is_udp).to_vec(), udp_frame(b"on"));
    ip("link add va type veth peer name vb address 02:00:00:00:00:0b");
    ip("link set va up");
    ip("link set vb up");
    wait_until_up("vb");
    // While the old port is still there: whoever opens does not know of it.
    let (mut a, mut new) = (packet_port("va", 1, pool), open("vb", 2, pool));
    drop(b);
    send_frame(&mut *a, pool, &udp_frame(b"again"));
    assert_eq!(new.next(is_udp).to_vec(), udp_frame(b"again"));
    drop((a, c, d, new, burst));
    all_free(pool);
}
