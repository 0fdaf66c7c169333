//! The levels of the cache with chosen hashes: tokens that share a slot must not be confused.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::first::{self, Owner};
use super::second::SecondLevel;
use super::stats::Counters;
use crate::clock::UnixTime;
use crate::jwt::Life;
use crate::verify::VerifiedSvid;
use crate::verify::verified::{Signer, Verified};

/// Two hashes of one set of the first level.
const HASH: u64 = 0xabcd << 48;
const NEIGHBOUR: u64 = HASH + 1;

fn verified(token: &str, hash: u64) -> Verified {
    Verified {
        token: token.into(),
        hash,
        revision: AtomicU64::new(0),
        spiffe_id: "spiffe://x/web".parse().unwrap(),
        audiences: ["a".into()].into(),
        life: Life {
            expires_at: UnixTime::from_secs(1),
            not_before: None,
            issued_at: None,
        },
        signer: Signer::Assumed("key".into()),
        payload: "{}".into(),
        claims: Default::default(),
    }
}

fn svid(token: &str, hash: u64) -> VerifiedSvid {
    VerifiedSvid::new(Arc::new(verified(token, hash)))
}

fn owner() -> Arc<Owner> {
    Arc::new(Owner::new(1 << 20))
}

fn has(owner: &Arc<Owner>, hash: u64, token: &str) -> bool {
    let found = first::get(owner, hash, token);
    found.is_some_and(|found| *found.svid.shared().token == *token)
}

#[test]
fn first_level_compares_owner_hash_and_whole_token() {
    let (ours, other) = (owner(), owner());
    first::put(&ours, 7, &svid("token", HASH));
    let found = first::get(&ours, HASH, "token").unwrap();
    assert_eq!((&*found.svid.shared().token, found.revision), ("token", 7));
    for (owner, hash, token) in [
        (&other, HASH, "token"),
        (&ours, NEIGHBOUR, "token"),
        (&ours, HASH, "token2"),
        (&ours, HASH, ""),
        (&ours, NEIGHBOUR, "token2"),
        (&other, NEIGHBOUR, "token"),
    ] {
        assert!(first::get(owner, hash, token).is_none(), "{hash} {token}");
    }
    // Removed under exactly this key, and replaced.
    first::remove(&other, HASH, "token");
    first::remove(&ours, HASH, "token2");
    first::put(&ours, 8, &svid("token", HASH));
    assert_eq!(first::get(&ours, HASH, "token").unwrap().revision, 8);
    first::remove(&ours, HASH, "token");
    assert!(!has(&ours, HASH, "token"));
}

#[test]
fn only_repeated_tokens_evict_from_a_full_set() {
    let owner = owner();
    for (n, token) in (0..).zip(["a", "b", "c", "d"]) {
        first::put_if_free(&owner, 0, &svid(token, HASH + n));
    }
    for (n, token) in (0..).zip(["a", "b", "c", "d"]) {
        assert!(has(&owner, HASH + n, token));
    }
    first::put_if_free(&owner, 0, &svid("new", HASH + 9));
    assert!(!has(&owner, HASH + 9, "new"));
    // "b" is the one that was used longest ago.
    assert!(has(&owner, HASH, "a"));
    first::put(&owner, 0, &svid("repeated", HASH + 9));
    assert!(has(&owner, HASH + 9, "repeated") && !has(&owner, HASH + 1, "b"));
    assert!(has(&owner, HASH, "a") && has(&owner, HASH + 2, "c") && has(&owner, HASH + 3, "d"));
}

#[test]
fn first_level_limits_the_weight_of_entries() {
    let token = "t".repeat(100);
    let weight = verified(&token, HASH).weight();
    for (bytes, kept) in [(256 * weight, true), (256 * weight - 1, false), (0, false)] {
        let owner = Arc::new(Owner::new(bytes));
        first::put(&owner, 0, &svid(&token, HASH));
        assert_eq!(has(&owner, HASH, &token), kept, "{bytes}");
    }
    // No thread keeps very long tokens, however large the cache is.
    let long = "t".repeat(2400);
    first::put(&owner(), 0, &svid(&long, HASH));
    assert!(!has(&owner(), HASH, &long));
}

#[test]
fn next_insertion_removes_entries_of_dropped_caches() {
    let (dropped, ours) = (owner(), owner());
    let put = |owner: &Arc<Owner>, token: &str| {
        let svid = svid(token, HASH);
        first::put(owner, 0, &svid);
        Arc::downgrade(svid.shared())
    };
    let (orphan, kept) = (put(&dropped, "orphan"), put(&ours, "kept"));
    dropped.mark_dropped();
    assert!(orphan.upgrade().is_some());
    first::put(&ours, 0, &svid("next", HASH << 1));
    assert!(orphan.upgrade().is_none() && kept.upgrade().is_some());
}

#[test]
fn frequent_entries_are_reported_to_the_second_level() {
    let owner = owner();
    first::put(&owner, 0, &svid("token", HASH));
    let wants = |_| first::get(&owner, HASH, "token").unwrap().wants_touch;
    assert_eq!((1..=1024).map(wants).filter(|wants| *wants).count(), 2);
}

#[test]
fn second_level_compares_hash_and_whole_token() {
    let level = SecondLevel::new(1 << 20, Arc::new(Counters::default()));
    let token = |hash, token| level.get(hash, token).map(|found| found.token.clone());
    level.insert(svid("a", HASH).shared());
    level.insert(svid("a", HASH).shared());
    level.insert(svid("b", NEIGHBOUR).shared());
    assert_eq!(level.len(), 2);
    for (hash, known, unknown) in [(HASH, "a", "b"), (NEIGHBOUR, "b", "a")] {
        assert_eq!(token(hash, known).as_deref(), Some(known));
        assert_eq!(token(hash, unknown), None);
        level.remove(hash, unknown);
        assert_eq!(token(hash, known).as_deref(), Some(known));
    }
    // Of two tokens with one hash, the later one stays.
    level.insert(svid("c", HASH).shared());
    assert_eq!((token(HASH, "a"), level.len()), (None, 2));
    assert_eq!(token(HASH, "c").as_deref(), Some("c"));
    level.remove(HASH, "c");
    assert_eq!((token(HASH, "c"), level.len()), (None, 1));
}

#[test]
fn weight_counts_every_text() {
    let base = verified("", 0);
    let mut token = verified("12345", 0);
    assert_eq!(token.weight(), base.weight() + 5);
    token.payload = "{\"a\":1}".into();
    assert_eq!(token.weight(), base.weight() + 5 + 5);
    token.spiffe_id = "spiffe://x/web/longer".parse().unwrap();
    assert_eq!(token.weight(), base.weight() + 5 + 5 + 7);
    token.audiences = ["a".into(), "bcd".into()].into();
    assert_eq!(token.weight(), base.weight() + 5 + 5 + 7 + 3 + 32);
}
