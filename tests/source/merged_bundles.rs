//! Several sources, merged into one.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tower_spiffe::bundle::{
    BundleAnswer, BundleSource, BundlesUnavailable, FixedBundles, JwtBundle, JwtBundleSet,
};
use tower_spiffe::source::MergedBundlesErrorReason as Reason;
use tower_spiffe::source::{MemoryBundles, MergedBundles};
use tower_spiffe::testing::Issuer;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{FileBundles, Validator};
use tower_spiffe_test_support::bundles::Bundles;
use tower_spiffe_test_support::temp::TempDir;

use crate::support::{AUD, OTHER, TD, WEB, World, millis, secs, soon, td};

const NOT_READY: ValidateReason = ValidateReason::BundlesUnavailable(BundlesUnavailable::NotReady);

fn set(issuer: &Issuer) -> JwtBundleSet {
    JwtBundleSet::from_iter([issuer.bundle()])
}

fn token(issuer: &Issuer) -> String {
    let id = issuer.trust_domain().to_spiffe_id();
    issuer.token(&format!("{id}/web"), AUD).sign()
}

fn validator(source: &MergedBundles) -> Validator {
    let validator = Validator::builder(source.clone()).audience(AUD);
    validator.build().unwrap()
}

fn reason(validator: &Validator, token: &str) -> Option<ValidateReason> {
    validator.validate(token).err().map(|error| error.reason())
}

/// Two trust domains. The first belongs to the default member.
struct Two {
    own: Issuer,
    other: Issuer,
    agent: Bundles,
    partner: Bundles,
    merged: MergedBundles,
}

impl Two {
    fn new() -> Self {
        let (own, other) = (Issuer::new(TD).unwrap(), Issuer::new(OTHER).unwrap());
        let (agent, partner) = (Bundles::new(set(&own)), Bundles::new(set(&other)));
        let merged = MergedBundles::builder()
            .default_member("agent", agent.clone())
            .member("partner", partner.clone(), [td(OTHER)])
            .build()
            .unwrap();
        Self {
            own,
            other,
            agent,
            partner,
            merged,
        }
    }
}

#[test]
fn unavailable_member_affects_its_domains_only() {
    let two = Two::new();
    let validator = validator(&two.merged);
    let (own, other) = (token(&two.own), token(&two.other));
    let revision = two.merged.revision().unwrap();
    for why in [
        BundlesUnavailable::NotReady,
        BundlesUnavailable::Withdrawn,
        BundlesUnavailable::Stale,
    ] {
        assert_eq!(
            (reason(&validator, &own), reason(&validator, &other)),
            (None, None)
        );
        two.partner.bundles_unavailable(why);
        // Also with a warm cache.
        let down = Some(ValidateReason::BundlesUnavailable(why));
        assert_eq!(
            (reason(&validator, &own), reason(&validator, &other)),
            (None, down)
        );
        assert!(two.merged.is_ready() && !two.merged.is_healthy());
        two.partner.answer(Ok(set(&two.other)));
    }
    assert_eq!(two.merged.revision(), Ok(revision + 6));
    two.agent.bundles_unavailable(BundlesUnavailable::Stale);
    assert_eq!(reason(&validator, &other), None);
    two.partner
        .bundles_unavailable(BundlesUnavailable::Withdrawn);
    assert_eq!(two.merged.revision(), Err(BundlesUnavailable::Stale));
    assert!(!two.merged.is_ready());
    two.partner.answer(Ok(set(&two.other)));
    assert_eq!(reason(&validator, &other), None);
}

/// Other members are never queried, even if they know the trust domain.
#[test]
fn only_the_owner_is_queried() {
    let (own, other) = (Issuer::new(TD).unwrap(), Issuer::new(OTHER).unwrap());
    let false_other = Issuer::new(OTHER).unwrap();
    let greedy = JwtBundleSet::from_iter([own.bundle(), false_other.bundle()]);
    let (agent, partner) = (MemoryBundles::new(greedy), Bundles::new(set(&other)));
    let merged = MergedBundles::builder()
        .member("partner", partner.clone(), [td(OTHER)])
        .default_member("agent", agent)
        .build()
        .unwrap();
    let validator = validator(&merged);
    let by_key = reason(&validator, &token(&false_other));
    assert!(by_key.is_some());
    assert_eq!(reason(&validator, &token(&other)), None);
    // Also if the owner has withdrawn it, or is unavailable.
    partner.set([]);
    let unknown = Some(ValidateReason::TrustDomainUnknown);
    assert_eq!(reason(&validator, &token(&other)), unknown);
    assert_eq!(reason(&validator, &token(&false_other)), unknown);
    partner.bundles_unavailable(BundlesUnavailable::NotReady);
    assert_eq!(reason(&validator, &token(&false_other)), Some(NOT_READY));
}

#[test]
fn without_a_default_other_domains_are_unknown() {
    let own = Issuer::new(TD).unwrap();
    let other = Issuer::new(OTHER).unwrap();
    let both = JwtBundleSet::from_iter([own.bundle(), other.bundle()]);
    let merged = MergedBundles::builder()
        .member("agent", MemoryBundles::new(both), [td(TD)])
        .build()
        .unwrap();
    let validator = validator(&merged);
    assert_eq!(reason(&validator, &token(&own)), None);
    let unknown = Some(ValidateReason::TrustDomainUnknown);
    assert_eq!(reason(&validator, &token(&other)), unknown);
}

#[test]
fn the_revision_rises_with_each_change() {
    let two = Two::new();
    let mut last = two.merged.revision().unwrap();
    let mut rises = |what: &str, by: u64| {
        let now = two.merged.revision().unwrap();
        assert_eq!(now, last + by, "{what}");
        last = now;
    };
    rises("nothing", 0);
    two.agent.set([two.own.bundle()]);
    rises("content", 1);
    two.partner.bundles_unavailable(BundlesUnavailable::Stale);
    rises("not ready", 1);
    rises("nothing", 0);
    two.partner
        .bundles_unavailable(BundlesUnavailable::Withdrawn);
    rises("another reason", 1);
    two.partner.set([]);
    two.agent.set([]);
    rises("both at once", 1);
    rises("nothing", 0);
}

#[test]
fn the_state_has_all_members() {
    let two = Two::new();
    two.partner
        .bundles_unavailable(BundlesUnavailable::Withdrawn);
    let state = two.merged.state();
    assert!(state.is_ready() && !state.is_healthy());
    assert_eq!(state.revision, two.merged.revision());
    let [agent, partner] = &*state.members else {
        panic!("two members");
    };
    assert_eq!((&*agent.name, agent.default), ("agent", true));
    assert!(agent.revision.is_ok() && agent.healthy && agent.trust_domains.is_empty());
    assert_eq!((&*partner.name, partner.default), ("partner", false));
    assert_eq!(partner.trust_domains, [td(OTHER)]);
    assert_eq!(partner.revision, Err(BundlesUnavailable::Withdrawn));
    assert!(!partner.healthy);
    let debug = format!("{:?}", two.merged);
    assert!(debug.contains("partner"), "{debug}");
}

#[test]
fn members_that_cannot_be_merged_are_errors() {
    let one = || MemoryBundles::default();
    let builder = MergedBundles::builder;
    for (builder, reason, part) in [
        (builder(), Reason::NoMember, "no members"),
        (
            builder().member("a", one(), []),
            Reason::NoTrustDomain,
            "\"a\"",
        ),
        (
            builder()
                .member("a", one(), [td(TD)])
                .member("b", one(), [td(OTHER), td(TD)]),
            Reason::TwoForOneTrustDomain,
            TD,
        ),
        (
            builder()
                .default_member("a", one())
                .default_member("b", one()),
            Reason::TwoDefaults,
            "\"b\"",
        ),
        (
            builder()
                .default_member("a", one())
                .member("a", one(), [td(TD)]),
            Reason::SameName,
            "\"a\"",
        ),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.reason(), reason);
        assert!(error.to_string().contains(part), "{error}");
    }
    // A trust domain that is listed twice is one route.
    let twice = builder().member("a", one(), [td(TD), td(TD)]);
    assert!(twice.build().is_ok());
}

/// Counts calls of the `unknown_key` hook.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicU64>);

impl BundleSource for Counting {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        Ok(0)
    }

    fn bundle(&self, _: &str) -> BundleAnswer {
        BundleAnswer::UnknownTrustDomain
    }

    fn unknown_key(&self, _: &str, _: &str) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn h06_unknown_keys_reach_the_owner_only() {
    let (agent, partner) = (Counting::default(), Counting::default());
    let merged = MergedBundles::builder()
        .member("agent", agent.clone(), [td(TD)])
        .member("partner", partner.clone(), [td(OTHER)])
        .build()
        .unwrap();
    merged.unknown_key(OTHER, "a");
    merged.unknown_key("unrouted.test", "a");
    let counts = [&agent, &partner].map(|member| member.0.load(Ordering::SeqCst));
    assert_eq!(counts, [0, 1]);
}

// === Waiting ===

async fn resolves_within(at_most: std::time::Duration, wait: impl Future<Output = ()>) {
    let began = Instant::now();
    soon("a change", wait).await;
    assert!(began.elapsed() <= at_most, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn any_members_change_wakes_a_wait() {
    let two = Two::new();
    let wait = || {
        let seen = two.merged.revision().unwrap();
        two.merged.changed_since(seen).unwrap()
    };
    let stale = wait();
    two.partner.set([]);
    resolves_within(secs(0), stale).await;
    let waiting = tokio::spawn(wait());
    tokio::task::yield_now().await;
    two.agent.set([]);
    resolves_within(secs(0), async { waiting.await.unwrap() }).await;
    // Ready again, without a change signal.
    two.partner
        .bundles_unavailable(BundlesUnavailable::NotReady);
    let waiting = tokio::spawn(wait());
    tokio::time::sleep(secs(10)).await;
    assert!(!waiting.is_finished());
    two.partner.set([]);
    resolves_within(millis(250), async { waiting.await.unwrap() }).await;
    // A revision from long ago.
    resolves_within(secs(0), two.merged.changed_since(0).unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn stale_bundles_wake_a_wait() {
    let world = World::new().await;
    let agent = world.builder().max_staleness(secs(60)).build().await;
    let agent = agent.unwrap();
    let merged = MergedBundles::builder()
        .default_member("agent", agent.clone())
        .member("fixed", FixedBundles::default(), [td(OTHER)])
        .build()
        .unwrap();
    assert!(merged.is_healthy());
    world.agent.stop().await;
    let seen = merged.revision().unwrap();
    let wait = tokio::spawn(merged.changed_since(seen).unwrap());
    tokio::time::sleep(secs(61)).await;
    assert!(!agent.is_ready() && merged.is_ready() && !merged.is_healthy());
    resolves_within(millis(250), async { wait.await.unwrap() }).await;
    assert_ne!(merged.revision(), Ok(seen));
}

#[tokio::test]
async fn sources_that_never_change_are_not_awaited() {
    let fixed = FixedBundles::default();
    let merged = MergedBundles::builder().default_member("fixed", fixed);
    let merged = merged.build().unwrap();
    assert!(merged.changed_since(merged.revision().unwrap()).is_none());
}

/// Signals that have no change; they must not block the thread.
struct Restless(AtomicU64);

impl BundleSource for Restless {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        Ok(7)
    }

    fn bundle(&self, _: &str) -> BundleAnswer {
        BundleAnswer::UnknownTrustDomain
    }

    fn changed_since(&self, _: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Some(Box::pin(std::future::ready(())))
    }
}

#[tokio::test(start_paused = true)]
async fn false_signals_cause_few_wakes() {
    let restless = Arc::new(Restless(AtomicU64::new(0)));
    let memory = MemoryBundles::default();
    let merged = MergedBundles::builder()
        .default_member("restless", restless.clone())
        .member("memory", memory.clone(), [td(TD)])
        .build()
        .unwrap();
    let seen = merged.revision().unwrap();
    let wait = tokio::spawn(merged.changed_since(seen).unwrap());
    tokio::time::sleep(secs(10)).await;
    let asked = restless.0.load(Ordering::SeqCst);
    assert!((30..=45).contains(&asked), "{asked}");
    memory.replace(JwtBundleSet::default());
    resolves_within(millis(250), async { wait.await.unwrap() }).await;
}

/// A wait does not keep a member open, and ends with the source.
#[tokio::test]
async fn a_wait_keeps_no_member_alive() {
    let dir = TempDir::new();
    let path = dir.join("map");
    std::fs::write(&path, "{}").unwrap();
    let files = FileBundles::builder().spiffe_helper(&path).build().await;
    let merged = MergedBundles::builder().default_member("files", files.unwrap());
    let merged = merged.build().unwrap();
    let wait = merged.changed_since(merged.revision().unwrap()).unwrap();
    let wait = tokio::spawn(wait);
    drop(merged);
    soon("the end", wait).await.unwrap();
}

/// An agent and files together, through the public API.
#[tokio::test(start_paused = true)]
async fn agent_and_partner_file_work_together() {
    let world = World::new().await;
    let dir = TempDir::new();
    let path = dir.join("partner");
    let partner = Issuer::new(OTHER).unwrap();
    let files = FileBundles::builder().jwks(td(OTHER), &path);
    let files = files.build_lazy().unwrap();
    let merged = MergedBundles::builder()
        .default_member("agent", world.source().await)
        .member("partner", files.clone(), [td(OTHER)])
        .build()
        .unwrap();
    let validator = Validator::builder(merged.clone()).audience(AUD);
    let validator = validator.clock(world.clock.shared()).build().unwrap();
    let of_partner = partner.token("spiffe://other.test/web", AUD);
    let of_partner = of_partner
        .issued_at(tower_spiffe::clock::UnixTime::from_secs(1_790_000_000))
        .expires_at(tower_spiffe::clock::UnixTime::from_secs(1_790_003_000))
        .sign();
    assert_eq!(reason(&validator, &world.token()), None);
    assert_eq!(reason(&validator, &of_partner), Some(NOT_READY));
    std::fs::write(&path, partner.jwks()).unwrap();
    files.ready().await.unwrap();
    assert_eq!(reason(&validator, &of_partner), None);
    assert!(merged.is_healthy());
    // The agent withdraws its bundles; the partner's are kept.
    world.agent.withdraw();
    world
        .time_until(|| merged.state().members[0].revision.is_err())
        .await;
    assert_eq!(reason(&validator, &of_partner), None);
    assert!(reason(&validator, &world.token()).is_some());
    assert_eq!(world.agent.issuer().trust_domain(), &td(TD));
    assert!(WEB.contains(TD));
}

// === The contract under load ===

/// A member that a writer changes: ready or not, with a key or without. `steps` is incremented before
/// and after each change, so it is odd during a change.
struct Moved {
    source: Bundles,
    with: JwtBundle,
    without: JwtBundle,
    steps: AtomicU64,
    good: AtomicBool,
}

impl Moved {
    fn new(issuer: &Issuer) -> Self {
        let name = issuer.trust_domain().clone();
        Self {
            source: Bundles::of([issuer.bundle()]),
            with: issuer.bundle(),
            without: JwtBundle::from_jwks(name, br#"{"keys": []}"#).unwrap(),
            steps: AtomicU64::new(0),
            good: AtomicBool::new(true),
        }
    }

    fn step(&self, rng: &mut fastrand::Rng) {
        self.steps.fetch_add(1, Ordering::SeqCst);
        let good = rng.bool();
        match (good, rng.bool()) {
            (true, _) => self.source.set([self.with.clone()]),
            (false, true) => self.source.set([self.without.clone()]),
            (false, false) => self.source.bundles_unavailable(BundlesUnavailable::Stale),
        }
        self.good.store(good, Ordering::SeqCst);
        self.steps.fetch_add(1, Ordering::SeqCst);
    }

    /// If no change happened during validation, the result must match the state.
    fn check(&self, validator: &Validator, token: &str) -> bool {
        let before = self.steps.load(Ordering::SeqCst);
        let good = self.good.load(Ordering::SeqCst);
        let verdict = validator.validate(token);
        let is_settled = before.is_multiple_of(2) && self.steps.load(Ordering::SeqCst) == before;
        if is_settled {
            assert_eq!(verdict.is_ok(), good, "at step {before}: {verdict:?}");
        }
        is_settled
    }
}

#[test]
fn no_result_outlives_a_change() {
    let issuers: Vec<_> = (0..3)
        .map(|n| Issuer::new(&format!("td{n}.test")).unwrap())
        .collect();
    let members: Vec<_> = issuers.iter().map(Moved::new).collect();
    let tokens: Vec<_> = issuers.iter().map(token).collect();
    let mut builder = MergedBundles::builder();
    for (issuer, member) in issuers.iter().zip(&members) {
        let domain = issuer.trust_domain().clone();
        builder = builder.member(domain.name().to_owned(), member.source.clone(), [domain]);
    }
    let merged = builder.build().unwrap();
    let validators = [validator(&merged), validator(&merged)];
    let settled = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let revisions = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for seed in 0..3_u64 {
            let (members, tokens, validators) = (&members, &tokens, &validators);
            let (merged, settled, done, revisions) = (&merged, &settled, &done, &revisions);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut last = 0;
                let mut settled_here = 0;
                while !done.load(Ordering::SeqCst) {
                    let at = rng.usize(0..members.len());
                    let validator = &validators[rng.usize(0..2)];
                    settled_here += u64::from(members[at].check(validator, &tokens[at]));
                    if let Ok(revision) = merged.revision() {
                        assert!(revision >= last, "{last}, then {revision}");
                        last = revision;
                    }
                }
                settled.fetch_add(settled_here, Ordering::SeqCst);
                revisions.lock().unwrap().push(last);
            });
        }
        let mut rng = fastrand::Rng::with_seed(99);
        for _ in 0..3_000 {
            members[rng.usize(0..members.len())].step(&mut rng);
            for _ in 0..rng.u32(0..2_000) {
                std::hint::spin_loop();
            }
            if rng.u8(0..4) == 0 {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(settled.load(Ordering::SeqCst) > 1_000);
    for (member, token) in members.iter().zip(&tokens) {
        for validator in &validators {
            assert!(member.check(validator, token));
        }
    }
}

/// Ready, except for reads of its revision before `from` and from `to` on.
struct ReadyBetween {
    set: JwtBundleSet,
    reads: AtomicU64,
    from: u64,
    to: u64,
}

impl BundleSource for ReadyBetween {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        match (self.from..self.to).contains(&read) {
            true => Ok(1),
            false => Err(BundlesUnavailable::NotReady),
        }
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        match self.set.get(trust_domain) {
            Some(bundle) => BundleAnswer::Ready(bundle.clone()),
            None => BundleAnswer::UnknownTrustDomain,
        }
    }
}

/// The member becomes ready after its revision was read, and is unavailable at the next read.
#[test]
fn no_result_outlives_a_brief_return() {
    let (own, other) = (Issuer::new(TD).unwrap(), Issuer::new(OTHER).unwrap());
    for from in 0..8 {
        for to in from..12 {
            let member = ReadyBetween {
                set: set(&other),
                reads: AtomicU64::new(0),
                from,
                to,
            };
            let merged = MergedBundles::builder()
                .default_member("agent", FixedBundles::new(set(&own)))
                .member("partner", member, [td(OTHER)])
                .build()
                .unwrap();
            let validator = validator(&merged);
            let token = token(&other);
            let verdicts: Vec<_> = (0..14).map(|_| reason(&validator, &token)).collect();
            // At least one read per check, so the member is unavailable from the 13th on.
            assert_eq!(verdicts[13], Some(NOT_READY), "{from}..{to}: {verdicts:?}");
        }
    }
}
