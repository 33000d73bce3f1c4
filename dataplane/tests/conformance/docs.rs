//! The page `docs/io.md`: what each backend can, as the properties have found it. The tables come from the
//! descriptions, every one of which is held against its port; a test holds the page to them.

use std::fmt::{self, Write as _};

use pollux_dataplane::port::Capabilities;

use crate::nature::{
    Arrival, Down, EmptyPool, FullReceive, FullTransmit, Jumbo, Longest, Nature, Needs, Sleep, Unfit,
};

/// The page.
pub(crate) fn page(natures: &[&Nature]) -> String {
    let mut page = String::from(BEGINNING);
    // Writing into memory cannot fail.
    let _ = tables(&mut page, natures);
    page.push_str(END);
    page
}

/// The page as it lies in the tree.
pub(crate) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/io.md");

const BEGINNING: &str = include_str!("io_beginning.md");
const END: &str = include_str!("io_end.md");

fn tables(page: &mut String, natures: &[&Nature]) -> fmt::Result {
    writeln!(page, "\n## What a backend carries\n")?;
    table(
        page,
        natures,
        &[
            ("opening it needs", |it| needs(it.needs)),
            ("far end in the tests", |it| it.far_end.into()),
            ("leaves unfinished", |it| unfinished(it.out)),
            ("a partial checksum arrives", |it| arrival(it.into.checksums)),
            ("a super-frame arrives", |it| arrival(it.into.super_frames)),
            ("shortest sent", |it| it.shortest.to_string()),
            ("longest sent", |it| longest(it.longest)),
            ("jumbo frame received", |it| jumbo(it.jumbo)),
        ],
    )?;
    page.push_str(LEGEND);
    writeln!(page, "\n## What a backend does when\n")?;
    table(
        page,
        natures,
        &[
            ("nobody receives", |it| full_receive(it.full_receive)),
            ("the far end takes nothing", |it| full_transmit(it.full_transmit)),
            ("the pool is empty", |it| empty_pool(it.empty_pool)),
            ("a frame is too short or long", |it| unfit(it.unfit)),
            ("its device is down", |it| down(it.down)),
            ("nothing comes", |it| sleep(it.sleep)),
        ],
    )
}

const LEGEND: &str = "
*Unfinished*: a partial checksum, or a super-frame of up to 64 KiB that is to be cut; what a backend does not carry,
the worker finishes in software before it sends (PT-04). Lengths are bytes of complete frames with their Ethernet
header, on a device whose MTU is 1500; a jumbo frame has 9014 and comes after the MTU was raised.
";

/// What a table says of a backend under a title.
type Column = (&'static str, fn(&Nature) -> String);

fn table(page: &mut String, natures: &[&Nature], columns: &[Column]) -> fmt::Result {
    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    writeln!(page, "| backend | {} |", titles.join(" | "))?;
    writeln!(page, "| --- |{}", " --- |".repeat(columns.len()))?;
    for nature in natures {
        let cells: Vec<String> = columns.iter().map(|(_, cell)| cell(nature)).collect();
        writeln!(page, "| {} | {} |", nature.name.replace('_', "\\_"), cells.join(" | "))?;
    }
    Ok(())
}

fn needs(needs: Needs) -> String {
    match needs {
        Needs::Nothing => "nothing",
        Needs::Namespace => "`CAP_NET_RAW` in its namespace",
        Needs::Root => "the machine's root",
        Needs::Tun => "`CAP_NET_ADMIN` in its namespace, `/dev/net/tun`",
    }
    .into()
}

fn unfinished(capabilities: Capabilities) -> String {
    match (capabilities.partial_checksum, capabilities.gso) {
        (false, false) => "nothing",
        (true, false) => "checksums",
        (false, true) => "super-frames",
        (true, true) => "checksums, super-frames",
    }
    .into()
}

fn arrival(arrival: Arrival) -> String {
    match arrival {
        Arrival::Marked => "as it is, marked",
        Arrival::Finished => "finished",
        Arrival::Cut => "cut by the kernel",
        Arrival::Missed => "not: counted by the port",
        Arrival::Bare => "as it is, unmarked",
    }
    .into()
}

fn longest(longest: Longest) -> String {
    match longest {
        Longest::Bytes(bytes) => bytes.to_string(),
        Longest::Any => "any".into(),
    }
}

fn jumbo(jumbo: Jumbo) -> String {
    match jumbo {
        Jumbo::DeviceRefuses => "no: the device refuses such an MTU",
        Jumbo::Missed => "no: counted by the port",
        Jumbo::Whole => "whole",
    }
    .into()
}

fn full_receive(full: FullReceive) -> String {
    match full {
        FullReceive::Missed => "the newest are lost, counted by the port",
        FullReceive::Both => "the newest are lost, counted by the port (and by the interface)",
        FullReceive::Interface => "the newest are lost, counted by the interface",
        FullReceive::SenderWaits => "they stay with the sender",
        FullReceive::Waits => "all wait",
    }
    .into()
}

fn full_transmit(full: FullTransmit) -> String {
    match full {
        FullTransmit::Refused => "frames stay with the caller",
        FullTransmit::Never => "cannot be: it takes all",
    }
    .into()
}

fn empty_pool(empty: EmptyPool) -> String {
    match empty {
        EmptyPool::Missed => "frames are lost, counted by the port",
        EmptyPool::Waits => "frames wait",
        EmptyPool::SendersMemory => "none can come: they lie in the same pool",
        EmptyPool::BringTheirOwn => "frames arrive: they bring their memory",
    }
    .into()
}

fn unfit(unfit: Unfit) -> String {
    match unfit {
        Unfit::StayWithCaller => "stays with the caller",
        Unfit::LostBehind => "is lost behind the port, counted there",
    }
    .into()
}

fn down(down: Down) -> String {
    match down {
        Down::Told => "sending and receiving fail",
        Down::ToldWhenSending => "sending fails",
        Down::ToldLater => "both fail; what was sent first waits",
        Down::NoDevice => "it has none",
    }
    .into()
}

fn sleep(sleep: Sleep) -> String {
    match sleep {
        Sleep::Descriptor => "sleeps on a descriptor",
        Sleep::Polls => "is polled",
    }
    .into()
}
