//! A worker that sleeps on a port of the kernel.

use std::time::Duration;

use libtest_mimic::Trial;
use pollux_dataplane::flow::{Sysctls, Timeouts};
use pollux_dataplane::forward::{Forwarder, Settings};
use pollux_dataplane::packet::PortId;
use pollux_dataplane::port::af_packet::{AfPacketPort, Options};
use pollux_dataplane::worker::{Command, Idle, Worker};

use crate::topology::{SILENCE, eventually, pool, send_frame, udp_frame, veth_pair};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial!(a_sleeping_worker_is_left_alone_until_a_frame_comes)]
}

/// Wake-ups are counted: a sleep takes as long as anybody lets it.
fn a_sleeping_worker_is_left_alone_until_a_frame_comes() {
    let _namespace = veth_pair();
    let pool = pool();
    let settings = Settings {
        connections: 16,
        clients: 16,
        timeouts: Timeouts::default(),
        sysctls: Sysctls::default(),
        seed: 1,
    };
    // Without tables every frame is dropped: that it was received is enough here.
    let (mut worker, handle) = Worker::new(Forwarder::new(&settings, pool).unwrap()).unwrap();
    worker.set_idle(Idle { sleep: Duration::from_secs(3600), ..Idle::default() });
    let port = AfPacketPort::open("va", PortId(0), pool, Options::default()).unwrap();
    worker.add_port(PortId(0), Box::new(port));
    let mut peer = AfPacketPort::open("vb", PortId(1), pool, Options::default()).unwrap();
    let thread = std::thread::spawn(move || worker.run());
    for frames in 1..=20 {
        assert!(eventually(|| handle.sleeps() >= frames), "not asleep");
        let polls = handle.polls();
        if frames == 1 {
            std::thread::sleep(SILENCE);
            assert_eq!((handle.sleeps(), handle.polls()), (1, polls), "woken by nobody");
        }
        send_frame(&mut peer, pool, &udp_frame(b"wake up"));
        assert!(eventually(|| handle.polls() > polls), "not woken by a frame");
    }
    assert_eq!(handle.ask(|worker| worker.stats().received), Ok(20));
    handle.send(Command::Stop).unwrap();
    thread.join().unwrap();
}
