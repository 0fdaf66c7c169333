//! The memory of a source's keys, and that replaced keys are freed.
//!
//! Parsed keys are allocated by C code, outside Rust's allocation counters. So these tests measure
//! the anonymous memory of a child process, as the kernel reports it. The child's `malloc` is
//! configured to return free memory. The measured memory includes fragmentation, so it is an upper
//! bound of the live memory.

use allocation_counter::measure;
use tower_spiffe::JwtSource;
use tower_spiffe::source::JwtSourceBuilder;
use tower_spiffe::testing::FakeAgent;

use crate::support::*;

fn counted(agent: &FakeAgent) -> JwtSourceBuilder {
    JwtSource::builder().connector(agent.connector())
}

/// Runs everything on the test thread, where allocations are counted.
#[test]
fn equal_updates_leave_no_allocations() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (agent, source) = runtime.block_on(async {
        let agent = FakeAgent::start_in_memory(TD).await.unwrap();
        for _ in 0..5 {
            agent
                .federate(&format!("td{}.test", agent.counts().bundle_messages))
                .unwrap();
            agent.rotate_now();
        }
        let source = counted(&agent).build().await.unwrap();
        (agent, source)
    });
    let equal_updates = |updates: u64| {
        runtime.block_on(async {
            for _ in 0..updates {
                let before = agent.counts().bundle_messages;
                agent.send_again();
                eventually("the message", || agent.counts().bundle_messages > before).await;
                settle().await;
            }
        });
    };
    // Buffers grow to their final size.
    equal_updates(100);
    let before = source.bundle_set().unwrap();
    // Thread-local allocations happen once.
    measure(|| equal_updates(100));
    let counted = measure(|| equal_updates(100));
    assert!(counted.count_total > 5_000, "no work was done: {counted:?}");
    assert_eq!(counted.bytes_current, 0, "{counted:?}");
    assert_eq!(source.state().revision, 1);
    let after = source.bundle_set().unwrap();
    for bundle in before.iter() {
        let same = after.get(bundle.trust_domain().name()).unwrap();
        assert!(std::sync::Arc::ptr_eq(bundle, same));
    }
}

#[tokio::test(start_paused = true)]
async fn replaced_set_is_freed() {
    let world = World::new().await;
    world.agent.federate(OTHER).unwrap();
    let source = world.source().await;
    let validator = world.validator(&source);
    assert!(validator.validate(&world.token()).is_ok());
    let set = source.bundle_set().unwrap();
    let bundles = set.iter().map(std::sync::Arc::downgrade);
    let bundles: Vec<_> = bundles.collect();
    let other = set.get(OTHER).unwrap().authorities().next().unwrap();
    let key = std::sync::Arc::downgrade(other);
    drop(set);
    let freed = || bundles.iter().filter(|it| it.upgrade().is_none()).count();
    let mut updates = source.updated();
    world.agent.unfederate(OTHER);
    soon("the smaller set", updates.changed()).await.unwrap();
    settle().await;
    assert_eq!((freed(), key.upgrade().is_none()), (1, true));
    world.agent.withdraw();
    soon("the withdrawal", updates.changed()).await.unwrap();
    settle().await;
    assert_eq!(freed(), 2);
}

#[cfg(target_os = "linux")]
mod process {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Child, ChildStdin, Command, Stdio};

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use tower_spiffe::testing::{FakeAgent, Issuer, Replay};
    use tower_spiffe::verify::ValidateReason;
    use tower_spiffe::{JwtSource, Validator};

    use crate::support::*;

    const DOMAINS: usize = 200;
    const KEYS: usize = 10;
    const MIB: usize = 1 << 20;

    /// The limit for two hundred trust domains with ten keys each.
    const MOST: usize = 3 * MIB;
    /// The limit for growth after a hundred equal updates (fragmentation).
    const MOST_LEFT: usize = MIB / 4;

    /// The child process and its standard streams. It prints its memory; the parent controls the steps.
    struct Weighed {
        child: Child,
        stdin: ChildStdin,
        lines: Box<dyn Iterator<Item = String>>,
    }

    impl Weighed {
        fn start(agent: &FakeAgent) -> Self {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "memory::process::child",
                    "--ignored",
                    "--nocapture",
                ])
                .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string())
                // One heap that returns its free end, and large allocations outside of it.
                .env("MALLOC_ARENA_MAX", "1")
                .env("MALLOC_TRIM_THRESHOLD_", "0")
                .env("MALLOC_TOP_PAD_", "0")
                .env("MALLOC_MMAP_THRESHOLD_", "4096")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            let lines = stdout.lines().map(Result::unwrap);
            let lines = lines.filter_map(|line| Some(line.split_once("weight: ")?.1.to_owned()));
            Self {
                stdin: child.stdin.take().unwrap(),
                child,
                lines: Box::new(lines),
            }
        }

        /// Returns the lowest memory with so many trust domains. Freed memory is returned a little
        /// later.
        fn with(&mut self, trust_domains: usize) -> usize {
            writeln!(self.stdin, "{trust_domains}").unwrap();
            self.lines.next().expect("a weight").parse().unwrap()
        }
    }

    impl Drop for Weighed {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    type Sets = Vec<(String, Vec<u8>)>;

    fn rsa_keys() -> Sets {
        // The modulus is not parsed until a token uses the key, and parsing does not factor it:
        // any odd number of 2048 bits has the same size.
        let mut draw = fastrand::Rng::with_seed(5);
        let mut key = |td: usize, n: usize| {
            let mut modulus: Vec<u8> = std::iter::repeat_with(|| draw.u8(..)).take(256).collect();
            modulus[0] |= 0x80;
            modulus[255] |= 1;
            serde_json::json!({"kty": "RSA", "kid": format!("{td:06}-{n:025}"), "e": "AQAB",
                "n": URL_SAFE_NO_PAD.encode(modulus)})
        };
        let mut set = |td| {
            let keys: Vec<_> = (0..KEYS).map(|n| key(td, n)).collect();
            let jwks = serde_json::json!({ "keys": keys }).to_string();
            (format!("spiffe://td{td}.test"), jwks.into_bytes())
        };
        (0..DOMAINS).map(&mut set).collect()
    }

    fn reordered(sets: &Sets) -> Sets {
        let reorder = |jwks: &[u8]| {
            let mut jwks: serde_json::Value = serde_json::from_slice(jwks).unwrap();
            jwks["keys"].as_array_mut().unwrap().reverse();
            jwks.to_string().into_bytes()
        };
        let sets = sets.iter();
        sets.map(|(name, jwks)| (name.clone(), reorder(jwks)))
            .collect()
    }

    async fn say(replay: &Replay, sets: &Sets) {
        soon("a reader", replay.send(sets.clone())).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_thousand_keys_weigh_less_than_three_mebibytes() {
        let agent = FakeAgent::start(TD).await.unwrap();
        let own = vec![entry(agent.issuer())];
        let warm = many_keys(20, KEYS);
        let replay = agent.replay();
        let mut child = Weighed::start(&agent);
        for (what, keys) in [
            ("P-256", many_keys(DOMAINS, KEYS)),
            ("RSA-2048", rsa_keys()),
        ] {
            // Allocate paths and threads before the first measurement.
            say(&replay, &warm).await;
            child.with(20);
            say(&replay, &own).await;
            let empty = child.with(1);
            say(&replay, &keys).await;
            let full = child.with(DOMAINS);
            let weight = full.saturating_sub(empty);
            println!("{what}: {DOMAINS} x {KEYS} keys weigh {} KiB", weight >> 10);

            // Let fragmentation of the heap settle first.
            let again = reordered(&keys);
            let mut after = [full; 2];
            for weight in &mut after {
                for _ in 0..50 {
                    say(&replay, &again).await;
                    say(&replay, &keys).await;
                }
                *weight = child.with(DOMAINS);
            }
            let left = after[1].saturating_sub(after[0]);
            let with_holes = after[1].saturating_sub(empty);
            println!(
                "{what}: {} KiB after two hundred equal updates",
                with_holes >> 10
            );
            println!(
                "{what}: the second hundred updates added {} KiB",
                left >> 10
            );
            assert!(left <= MOST_LEFT, "{what}: {left}");
            let mut held = after[1];
            if what == "P-256" {
                assert!(weight > MIB / 4, "too little was measured: {weight}");
                assert!(weight <= MOST, "{weight}");
            } else {
                // One token per key, so that each key is parsed for one algorithm.
                held = child.with(0);
                let parsed = held.saturating_sub(empty) >> 10;
                println!("{what}: parsed for one algorithm, they weigh {parsed} KiB");
            }
            // Replace the set and restore it: freed memory is used again.
            say(&replay, &own).await;
            child.with(1);
            say(&replay, &keys).await;
            let again = child.with(DOMAINS).saturating_sub(held);
            println!("{what}: {} KiB more after a replacement", again >> 10);
            assert!(again <= MOST_LEFT, "{what}: {again}");
        }
    }

    /// The anonymous memory of this process, in bytes.
    fn anonymous() -> usize {
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Anonymous:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<usize>().unwrap() << 10
    }

    #[tokio::test]
    #[ignore = "a child process of another test"]
    async fn child() {
        let source = JwtSource::new().await.unwrap();
        let (asked, mut asks) = tokio::sync::mpsc::channel::<usize>(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lines() {
                let _ = asked.blocking_send(line.unwrap().trim().parse().unwrap());
            }
        });
        while let Some(trust_domains) = asks.recv().await {
            if trust_domains == 0 {
                parse_all(&source);
            } else {
                let holds = || source.bundle_set().unwrap().len() == trust_domains;
                eventually("the set", holds).await;
            }
            let mut least = usize::MAX;
            for _ in 0..100 {
                tokio::time::sleep(millis(5)).await;
                least = least.min(anonymous());
            }
            println!("weight: {least}");
        }
    }

    /// Verifies a token with every key; no key signed it.
    fn parse_all(source: &JwtSource) {
        let validator = Validator::builder(source.clone())
            .audience(AUD)
            .build()
            .unwrap();
        for bundle in source.bundle_set().unwrap().iter() {
            let subject = format!("{}/web", bundle.trust_domain().to_spiffe_id());
            let template = Issuer::new(bundle.trust_domain().name()).unwrap();
            for key in bundle.authorities() {
                let token = template
                    .token(&subject, AUD)
                    .header("kid", key.key_id())
                    .header("alg", "RS256")
                    .signature([7; 256])
                    .sign();
                let error = validator.validate(&token).unwrap_err();
                assert_eq!(error.reason(), ValidateReason::Signature);
            }
        }
    }
}
