//! What grows with the cluster: time and memory of making the rules and the tables of 1,000 and of 10,000
//! Services with 3 endpoints each, and of proving that both agree. One run each, in this order, in one process;
//! the peak is that of the step alone, by `VmHWM`, what earlier steps left behind included.
//!
//! ```text
//! cargo bench -p pollux-bench --features control --bench verify
//! ```

use std::time::{Duration, Instant};

use pollux_bench::cluster::synthetic;
use pollux_control::iptables::generate::generate;
use pollux_control::iptables::ipset::Sets;
use pollux_control::iptables::parse::parse;
use pollux_control::translate::translate;
use pollux_control::verify::subject::{Answer, against_tables};
use pollux_dataplane::packet::{Family, V4, V6};

/// Services, and endpoints of each.
const SIZES: [(usize, usize); 2] = [(1000, 3), (10_000, 3)];

fn main() {
    println!("{:<24} {:>6} {:<10} {:>15} {:>10} {:>9}", "cluster", "family", "step", "size", "time", "peak");
    for (services, endpoints) in SIZES {
        measure::<V4>(services, endpoints);
        measure::<V6>(services, endpoints);
    }
}

fn measure<A: Family>(services: usize, endpoints: usize) {
    let made = synthetic(services, endpoints);
    let input = made.input();
    let line = |step: &str, size: String, (time, peak): (Duration, u64)| {
        let cluster = format!("{services} x {endpoints}");
        let time = format!("{:.1} ms", time.as_secs_f64() * 1e3);
        println!("{cluster:<24} {:>6} {step:<10} {size:>15} {time:>10} {peak:>5} MiB", A::NAME);
    };
    let (rules, cost) = cost(|| generate::<A>(&input));
    assert!(rules.rule_count() > services * endpoints, "every endpoint has a rule");
    line("generate", format!("{} rules", rules.rule_count()), cost);
    let (translation, cost) = self::cost(|| translate::<A>(&input));
    let frontends = translation.services.frontends().count();
    assert!(frontends > services, "every Service has a frontend, some have more");
    line("translate", format!("{frontends} fe"), cost);
    let (text, cost) = self::cost(|| rules.to_string());
    line("print", format!("{} KiB", text.len() / 1024), cost);
    let (parsed, cost) = self::cost(|| parse::<A>(None, &text).expect("what was printed"));
    assert_eq!(parsed.rule_count(), rules.rule_count(), "every rule comes back");
    line("parse", format!("{} rules", parsed.rule_count()), cost);
    let (report, cost) = self::cost(|| against_tables(&parsed, &Sets::default(), &input, None));
    assert_eq!(report.answer(), Answer::Equal, "{:?} {:?}", report.counterexamples.first(), report.undecided);
    line("verify", format!("{} pieces", report.pieces), cost);
}

/// What `work` gives, how long it took, and how much memory the process held at most meanwhile, in MiB.
fn cost<T>(work: impl FnOnce() -> T) -> (T, (Duration, u64)) {
    // Forgets the peak so far (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").expect("the process may forget its own peak");
    let start = Instant::now();
    let made = work();
    let time = start.elapsed();
    let status = std::fs::read_to_string("/proc/self/status").expect("proc(5)");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("proc(5)");
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("proc(5)");
    (made, (time, kib / 1024))
}
