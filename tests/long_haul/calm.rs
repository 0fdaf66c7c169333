//! A calm phase without faults: sources apply what the agent publishes in time. A removed key is
//! rejected, a published key is accepted.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::driver::Driver;
use crate::incidents::algorithm;
use crate::invariants::{Presented, Verdict};
use crate::present::{ask, validate};
use crate::times::Times;
use crate::world::{AUDIENCES, FOREIGN, Key};

/// Changes that an agent makes without faults.
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

/// A token that was valid once.
pub(crate) struct Sample {
    key: Key,
    token: Presented,
}

impl Driver {
    pub(crate) async fn calm(&mut self) {
        let changes = match self.rounds {
            // In the first round, all changes.
            0 => CHANGES.to_vec(),
            _ => self.rng.choose_multiple(CHANGES, 3),
        };
        for change in changes {
            let samples = self.samples();
            self.check_samples(&samples).await;
            self.say(format_args!("calm: {change:?}"));
            self.change(change).await;
            self.world.note_keys();
            let prompt = self.world.times.prompt;
            let what = format!("{change:?}");
            self.wait_until_up_to_date(prompt, Duration::from_millis(20), &what)
                .await;
            self.check_samples(&samples).await;
            self.check_samples(&self.samples()).await;
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
            Change::Eager => self.eager_client_is_disconnected().await,
        }
    }

    /// An equal set in another order is not a change.
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
            self.world.fail("an equal set was reported as a change");
        }
    }

    /// With a healthy stream, a withdrawal takes effect in time: at once for one source, after its grace
    /// period for the other.
    async fn withdraw_and_restore(&mut self) {
        let world = self.world.clone();
        let samples = self.samples();
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
                    world.fail(&format!("{name} still validates with withdrawn bundles"));
                }
                sleep(Duration::from_millis(20)).await;
            }
            for sample in &samples {
                for verdict in [
                    validate(&world, station, true, &sample.token),
                    validate(&world, station, false, &sample.token),
                    ask(&world, station, false, &sample.token).await,
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
        self.wait_until_up_to_date(times.recovery, times.poll, "restored")
            .await;
    }

    /// A client that pings too often is disconnected, and reconnects.
    async fn eager_client_is_disconnected(&mut self) {
        let world = self.world.clone();
        let source = self.eager_source();
        self.eager = Some(source.clone());
        let before = world.agent.counts().too_many_pings;
        let began = Instant::now();
        // After the fourth ping. A change of the bundles would reset the count.
        let within = world.times.eager * 20 + world.times.prompt;
        while world.agent.counts().too_many_pings == before || source.state().reconnects == 0 {
            if began.elapsed() > within {
                world.fail("a client that pings too often is not disconnected");
            }
            sleep(world.times.poll).await;
        }
        while !source.is_healthy() || !source.state().connected {
            if began.elapsed() > within + world.times.recovery {
                world.fail("a client does not reconnect after too many pings");
            }
            sleep(world.times.poll).await;
        }
        source.shutdown().await;
        self.check();
        self.eager = None;
    }

    /// Returns a token for each published key.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let published = self.published();
        let (keys, _) = self.world.known_keys();
        let served = keys.into_iter().filter(|key| {
            let name = self.world.issuer(key.issuer).trust_domain().name();
            published
                .get(name)
                .is_some_and(|kids| kids.contains(&key.kid))
        });
        served
            .map(|key| Sample {
                token: self.token(&key),
                key,
            })
            .collect()
    }

    fn token(&self, key: &Key) -> Presented {
        let issuer = self.world.issuer(key.issuer);
        let id = format!("spiffe://{}/sample", issuer.trust_domain());
        let token = issuer.token(&id, AUDIENCES[0]).key(&key.kid);
        Presented::new(token.sign(), false)
    }

    /// Checks that every source agrees with the agent about each sample, and about a new token of its key.
    pub(crate) async fn check_samples(&self, samples: &[Sample]) {
        let world = &self.world;
        for sample in samples {
            let new_token = self.token(&sample.key);
            for token in [&sample.token, &new_token] {
                for station in &world.stations {
                    // A key may be retired meanwhile; then check again.
                    for attempt in 0.. {
                        let published = self.published();
                        let taken_in = self.is_up_to_date();
                        let expected = match published
                            .get(&token.trust_domain)
                            .is_some_and(|kids| kids.contains(&token.kid))
                        {
                            true => Verdict::Accepted,
                            false => Verdict::Rejected,
                        };
                        let verdicts = [
                            validate(world, station, true, token),
                            validate(world, station, false, token),
                            ask(world, station, false, token).await,
                            ask(world, station, true, token).await,
                        ];
                        let is_current = token.expires_at > world.now();
                        if !is_current || verdicts.iter().all(|verdict| *verdict == expected) {
                            if is_current && expected == Verdict::Rejected {
                                world.tally.removed_keys.up();
                            }
                            break;
                        }
                        let steady =
                            taken_in && published == self.published() && self.is_up_to_date();
                        if steady || attempt > 20 {
                            world.fail(&format!(
                                "{}: key {} of {}: expected {expected:?}, got {verdicts:?}",
                                station.name, sample.key.number, token.trust_domain,
                            ));
                        }
                        sleep(world.times.poll).await;
                    }
                }
            }
        }
    }
}
