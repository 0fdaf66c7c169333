//! A calm stretch: nothing is wrong, and what the agent publishes is taken in promptly. A key that
//! is gone is good no longer, a key that is served is.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cards::algorithm;
use crate::driver::Driver;
use crate::invariants::{Presented, Verdict};
use crate::present::{ask, validate};
use crate::times::Times;
use crate::world::{AUDIENCES, FOREIGN, Key};

/// What an agent does on a good day.
#[derive(Debug, Clone, Copy)]
enum Change {
    Rotate,
    RotateTo,
    RotateNow,
    RotateEvery,
    TaintAndRevoke,
    Federate,
    Unfederate,
    ForeignRotates,
    SendAgain,
    WithdrawAndRestore,
    Eager,
}

const CHANGES: [Change; 11] = [
    Change::Rotate,
    Change::RotateTo,
    Change::RotateNow,
    Change::RotateEvery,
    Change::TaintAndRevoke,
    Change::Federate,
    Change::Unfederate,
    Change::ForeignRotates,
    Change::SendAgain,
    Change::WithdrawAndRestore,
    Change::Eager,
];

/// A token that was good once.
pub(crate) struct Witness {
    key: Key,
    token: Presented,
}

impl Driver {
    pub(crate) async fn calm(&mut self) {
        let changes = match self.rounds {
            // The first time, all of them.
            0 => CHANGES.to_vec(),
            _ => self.rng.choose_multiple(CHANGES, 3),
        };
        for change in changes {
            let witnesses = self.witnesses();
            self.confront(&witnesses).await;
            self.say(format_args!("calm: {change:?}"));
            self.change(change).await;
            self.world.note_keys();
            let prompt = self.world.times.prompt;
            let what = format!("{change:?}");
            self.taken_in_within(prompt, Duration::from_millis(20), &what)
                .await;
            self.confront(&witnesses).await;
            self.confront(&self.witnesses()).await;
            self.check();
            let rest = Times::draw(&mut self.rng, &self.world.times.step) / 4;
            sleep(rest).await;
        }
    }

    async fn change(&mut self, change: Change) {
        let world = self.world.clone();
        let agent = &world.agent;
        let issuer = agent.issuer();
        let foreign = self.rng.usize(..FOREIGN.len());
        match change {
            Change::Rotate => drop(agent.rotate().await),
            Change::RotateTo => drop(agent.rotate_to(algorithm(&mut self.rng)).await),
            Change::RotateNow => drop(agent.rotate_now()),
            Change::RotateEvery => {
                agent.rotate_every(world.times.rotation);
                sleep(world.times.rotation.mul_f64(2.5)).await;
                agent.stop_rotating();
            }
            Change::TaintAndRevoke => {
                agent.rotate().await;
                let kids = issuer.key_ids();
                for kid in kids.iter().filter(|kid| **kid != issuer.signing_key_id()) {
                    agent.taint(kid);
                    issuer.revoke(kid);
                }
            }
            Change::Federate => self.federate(foreign),
            Change::Unfederate => self.unfederate(foreign),
            Change::ForeignRotates => {
                let issuer = &world.foreign[foreign];
                let old = issuer.signing_key_id();
                issuer.rotate_now();
                issuer.revoke(&old);
            }
            Change::SendAgain => self.send_again().await,
            Change::WithdrawAndRestore => self.withdraw_and_restore().await,
            Change::Eager => self.eager_is_cut_off().await,
        }
    }

    /// An equal set in another order is no change.
    async fn send_again(&self) {
        let changes = || {
            let stations = self.world.stations.iter();
            let changes: Vec<u64> = stations
                .map(|station| station.source.updated().last())
                .collect();
            (self.published(), changes)
        };
        let before = changes();
        self.world.agent.send_again();
        sleep(self.world.times.poll).await;
        let after = changes();
        // A key may have been retired meanwhile.
        if before.0 == after.0 && before.1 != after.1 {
            self.world.fail("an equal set was told of as a change");
        }
    }

    /// Over a healthy stream, a withdrawal is taken in promptly: at once by the one source, after
    /// its grace by the other.
    async fn withdraw_and_restore(&mut self) {
        let world = self.world.clone();
        let witnesses = self.witnesses();
        world.agent.withdraw();
        let began = Instant::now();
        for (station, grace) in world
            .stations
            .iter()
            .zip([Duration::ZERO, world.times.grace])
        {
            while station.key_sets().is_some() {
                if began.elapsed() > grace + world.times.prompt {
                    let name = station.name;
                    world.fail(&format!("{name} still judges by what was withdrawn"));
                }
                sleep(Duration::from_millis(20)).await;
            }
            for witness in &witnesses {
                for verdict in [
                    validate(&world, station, true, &witness.token),
                    validate(&world, station, false, &witness.token),
                    ask(&world, station, false, &witness.token).await,
                ] {
                    if verdict != Verdict::BundlesUnavailable {
                        let name = station.name;
                        world.fail(&format!("{name}, withdrawn: {}", verdict.word()));
                    }
                }
            }
        }
        world.agent.restore();
        let times = &world.times;
        self.taken_in_within(times.recovery, times.poll, "restored")
            .await;
    }

    /// Who pings too often is cut off, and comes back.
    async fn eager_is_cut_off(&mut self) {
        let world = self.world.clone();
        let source = self.eager_source();
        self.eager = Some(source.clone());
        let before = world.agent.counts().too_many_pings;
        let began = Instant::now();
        // At the fourth ping; a change of the bundles in between would forgive the first ones.
        let within = world.times.eager * 20 + world.times.prompt;
        while world.agent.counts().too_many_pings == before || source.state().reconnects() == 0 {
            if began.elapsed() > within {
                world.fail("who pings too often is not cut off");
            }
            sleep(world.times.poll).await;
        }
        while !source.is_healthy() || !source.state().is_connected() {
            if began.elapsed() > within + world.times.recovery {
                world.fail("who was cut off for its pings does not come back");
            }
            sleep(world.times.poll).await;
        }
        source.shutdown().await;
        self.check();
        self.eager = None;
    }

    /// A token by each key that is served.
    pub(crate) fn witnesses(&self) -> Vec<Witness> {
        let published = self.published();
        let (keys, _) = self.world.known_keys();
        let served = keys.into_iter().filter(|key| {
            let name = self.world.issuer(key.issuer).trust_domain().name();
            published
                .get(name)
                .is_some_and(|kids| kids.contains(&key.kid))
        });
        served
            .map(|key| Witness {
                token: self.token(&key),
                key,
            })
            .collect()
    }

    fn token(&self, key: &Key) -> Presented {
        let issuer = self.world.issuer(key.issuer);
        let id = format!("spiffe://{}/witness", issuer.trust_domain());
        let token = issuer.token(&id, AUDIENCES[0]).key(&key.kid);
        Presented::new(token.sign(), false)
    }

    /// Every source says of each witness, and of a new token by the same key, what the agent's own
    /// books say.
    pub(crate) async fn confront(&self, witnesses: &[Witness]) {
        let world = &self.world;
        for witness in witnesses {
            let anew = self.token(&witness.key);
            for token in [&witness.token, &anew] {
                for station in &world.stations {
                    // A key may be retired in the middle of this: then it is looked at again.
                    for attempt in 0.. {
                        let published = self.published();
                        let taken_in = self.is_taken_in();
                        let expected = match published
                            .get(&token.trust_domain)
                            .is_some_and(|kids| kids.contains(&token.kid))
                        {
                            true => Verdict::Admitted,
                            false => Verdict::Refused,
                        };
                        let verdicts = [
                            validate(world, station, true, token),
                            validate(world, station, false, token),
                            ask(world, station, false, token).await,
                            ask(world, station, true, token).await,
                        ];
                        let in_time = token.expires_at > world.now();
                        if !in_time || verdicts.iter().all(|verdict| *verdict == expected) {
                            if in_time && expected == Verdict::Refused {
                                world.tally.gone.up();
                            }
                            break;
                        }
                        let steady =
                            taken_in && published == self.published() && self.is_taken_in();
                        if steady || attempt > 20 {
                            world.fail(&format!(
                                "{}: key {} of {}: expected {expected:?}, and it was {verdicts:?}",
                                station.name, witness.key.number, token.trust_domain,
                            ));
                        }
                        sleep(world.times.poll).await;
                    }
                }
            }
        }
    }
}
