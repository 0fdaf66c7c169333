//! Callers as seen by the server: they send tokens of every kind repeatedly.

use fastrand::Rng;

use crate::invariants::{Presented, Verdict, View, check_verdict};
use crate::load::who;
use crate::times::Times;
use crate::world::{AUDIENCES, Shared, Station, World, bearing, status_of};

/// The number of tokens of one presenter.
const HAND: usize = 24;

/// Sends tokens to every validator and service until the end.
pub(crate) async fn presenter(world: Shared, number: usize, mut rng: Rng) {
    let me = who("presenter", number);
    let mut hand: Vec<Presented> = Vec::new();
    loop {
        let rest = Times::draw(&mut rng, &world.times.think);
        world.gate.rest(rest).await;
        let Some(_inside) = world.gate.enter().await else {
            return;
        };
        let token = if hand.len() < HAND || rng.u8(..4) == 0 {
            let token = draw(&world, &mut rng);
            if hand.len() < HAND {
                hand.push(token.clone());
            } else {
                let place = rng.usize(..HAND);
                hand[place] = token.clone();
            }
            token
        } else {
            rng.choice(&hand).unwrap().clone()
        };
        let station = rng.choice(&world.stations).unwrap();
        let [cached, cold, door] = [
            validate(&world, station, true, &token),
            validate(&world, station, false, &token),
            ask(&world, station, rng.u8(..4) == 0, &token).await,
        ]
        .map(Verdict::word);
        let key = world.number_of(&token.kid);
        let left = token.expires_at.secs() - world.now().secs();
        let station = station.name;
        world.log.say(
            &me,
            format_args!("{station} key {key}, {left} s left: {cached} {cold} {door}"),
        );
    }
}

/// Validates with the cache or without.
pub(crate) fn validate(
    world: &World,
    station: &Station,
    cache: bool,
    token: &Presented,
) -> Verdict {
    let (validator, how) = match cache {
        true => (&station.cached, "cached"),
        false => (&station.cold, "cold"),
    };
    let before = View::before(world, station);
    let verdict = Verdict::from(&validator.validate(&token.text));
    let after = View::after(world, station);
    check_verdict(world, station, how, token, (&before, &after), verdict);
    verdict
}

/// Sends to the service that rejects at once, or to the one that waits for unknown keys.
pub(crate) async fn ask(
    world: &World,
    station: &Station,
    patient: bool,
    token: &Presented,
) -> Verdict {
    let (door, how) = match patient {
        true => (&station.patient, "patient service"),
        false => (&station.door, "service"),
    };
    let before = View::before(world, station);
    let within = world.times.key_wait + world.times.answer;
    let answer = status_of(door, bearing(&token.text));
    let Ok(status) = tokio::time::timeout(within, answer).await else {
        let name = station.name;
        world.log.broken(format_args!(
            "{name} ({how}): no response within {within:?}"
        ));
        return Verdict::BundlesUnavailable;
    };
    let verdict = Verdict::from(status);
    let after = View::after(world, station);
    check_verdict(world, station, how, token, (&before, &after), verdict);
    verdict
}

/// Returns a token of any kind: of the signing key, of an older key, of a removed key (stolen), forged,
/// or short-lived.
fn draw(world: &World, rng: &mut Rng) -> Presented {
    let key = world.draw_key(rng);
    let issuer = world.issuer(key.issuer);
    let id = format!("spiffe://{}/caller", issuer.trust_domain());
    let token = issuer.token(&id, AUDIENCES[0]);
    match rng.u8(..10) {
        0 => Presented::new(token.signed_by(&world.forger).sign(), true),
        1 => Presented::new(token.sign(), false),
        2 => {
            let life = world.times.token_life / rng.u32(5..50);
            Presented::new(token.key(&key.kid).expires_in(life).sign(), false)
        }
        _ => Presented::new(token.key(&key.kid).sign(), false),
    }
}
