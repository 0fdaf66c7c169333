//! The phases of a run: incidents, recovery, a count of resources, a calm phase; repeated.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tower_spiffe::JwtSource;
use tower_spiffe::testing::{Fault, Replay};

use crate::census::Census;
use crate::incidents::{Incident, Shuffle, algorithm, raw_messages, scope, steps};
use crate::load::{Path, paths, spawn_callers};
use crate::times::Times;
use crate::world::{BATCH, BATCH_HINT, FOREIGN, KeySets, Shared, TD, WEB, World};

pub(crate) struct Driver {
    pub(crate) world: Shared,
    pub(crate) rng: Rng,
    pub(crate) paths: Vec<Path>,
    pub(crate) rounds: u64,
    callers: Vec<JoinHandle<()>>,
    shuffle: Shuffle,
    happened: BTreeMap<Incident, u64>,
    began: Instant,
    pub(crate) base: Census,
    /// The number of keys at each time.
    pub(crate) made: Vec<(Instant, u64)>,
    /// The members of [`FOREIGN`] that the agent federates with.
    pub(crate) federated: [bool; 2],
    pub(crate) eager: Option<JwtSource>,
    too_many_pings: Cell<u64>,
    replay: Option<Replay>,
    /// Connections are open but dead.
    dead: bool,
    /// The agent reported a request as invalid.
    invalid: bool,
}

impl Driver {
    /// Starts all callers, and checks that everything works before the first incident.
    pub(crate) async fn begin(world: World) -> Self {
        let world = Shared::new(world);
        let callers = spawn_callers(&world);
        let mut driver = Self {
            rng: Rng::with_seed(world.seed),
            paths: paths(&world),
            rounds: 0,
            callers,
            shuffle: Shuffle::new(),
            happened: BTreeMap::new(),
            began: Instant::now(),
            base: Census::default(),
            made: vec![(Instant::now(), world.known_keys().1)],
            federated: [true; 2],
            eager: None,
            too_many_pings: Cell::new(0),
            replay: None,
            dead: false,
            invalid: false,
            world,
        };
        driver.world.gate.open();
        driver.converge().await;
        driver.quiet().await;
        driver.base = Census::take(&driver.world);
        driver.world.gate.open();
        driver.calm().await;
        driver
    }

    /// Runs one round. Returns whether it was the last: the time is up and every incident happened.
    pub(crate) async fn round(&mut self) -> bool {
        self.rounds += 1;
        self.say(format_args!("round {}", self.rounds));
        self.incidents().await;
        self.recover().await;
        self.converge().await;
        self.census(false).await;
        self.calm().await;
        self.check();
        self.began.elapsed() >= self.world.times.total && self.shuffle.dealt > 0
    }

    async fn incidents(&mut self) {
        for _ in 0..steps(&mut self.rng) {
            let incident = self.shuffle.deal(&mut self.rng);
            *self.happened.entry(incident).or_default() += 1;
            self.play(incident).await;
            self.check();
            let rest = Times::draw(&mut self.rng, &self.world.times.step);
            sleep(rest).await;
            self.check();
        }
        // Sometimes until every token expires.
        if self.rng.u8(..4) == 0 {
            self.say("the incidents last");
            sleep(self.world.times.token_life).await;
            self.check();
        }
    }

    async fn play(&mut self, incident: Incident) {
        let world = self.world.clone();
        let (agent, rng) = (&world.agent, &mut self.rng);
        let issuer = agent.issuer();
        if let Some(fault) = incident.fault(&world.times, rng) {
            let scope = scope(rng);
            self.dead |= fault == Fault::HalfOpen;
            if let Fault::Refuse(code) = fault {
                // InvalidArgument and Unimplemented.
                self.invalid |= [3, 12].contains(&code.as_u8());
            }
            // Faults of new connections take effect sooner if the old ones are cut.
            let cut = matches!(incident, Incident::NotHttp2 | Incident::HalfOpen) && rng.bool();
            self.say(format_args!("{fault:?} of {scope:?}, cut {cut}"));
            match scope {
                Some(call) => agent.fail_call(call, fault),
                None => agent.fail(fault),
            }
            if cut {
                agent.cut_connections().await;
            }
            return;
        }
        let foreign = rng.usize(..FOREIGN.len());
        let mut what = String::new();
        match incident {
            Incident::HalfOpenNow => {
                self.dead = true;
                agent.half_open();
            }
            Incident::Cut => agent.cut_connections().await,
            Incident::Stop => agent.stop().await,
            Incident::StartAgain => agent.start_again().await.unwrap(),
            Incident::Restart => agent.restart().await.unwrap(),
            Incident::ForgetTokens => agent.forget_tokens(),
            Incident::Withdraw => agent.withdraw(),
            Incident::Restore => agent.restore(),
            Incident::Unregister => agent.unregister(rng.choice([WEB, BATCH]).unwrap()),
            Incident::Register => self.register(),
            Incident::Rotate => drop(agent.rotate().await),
            Incident::RotateTo => {
                let algorithm = algorithm(rng);
                what = format!("{algorithm}");
                agent.rotate_to(algorithm).await;
            }
            Incident::RotateNow => drop(agent.rotate_now()),
            Incident::RotateEvery => agent.rotate_every(world.times.rotation),
            Incident::StopRotating => agent.stop_rotating(),
            Incident::TaintAndRevoke => {
                let kids = issuer.key_ids();
                if let Some(kid) = kids.iter().find(|kid| **kid != issuer.signing_key_id()) {
                    what = format!("key {}", world.number_of(kid));
                    agent.taint(kid);
                    issuer.revoke(kid);
                }
            }
            Incident::Revoke => {
                // Also if it is the signing key.
                if let Some(kid) = rng.choice(issuer.key_ids()) {
                    what = format!("key {}", world.number_of(&kid));
                    issuer.revoke(&kid);
                }
            }
            Incident::Federate => self.federate(foreign),
            Incident::Unfederate => self.unfederate(foreign),
            Incident::FederateInvalid => {
                self.federated[foreign] = false;
                agent.federate_raw(FOREIGN[foreign], "{\"keys\"").unwrap();
            }
            Incident::ForeignRotates => {
                let issuer = &world.foreign[foreign];
                let old = issuer.signing_key_id();
                issuer.rotate_now();
                if rng.bool() {
                    issuer.revoke(&old);
                }
            }
            Incident::SendAgain => agent.send_again(),
            Incident::Replay => {
                let replay = self.replay.take().unwrap_or_else(|| agent.replay());
                for _ in 0..rng.usize(1..4) {
                    let patience = Times::draw(rng, &world.times.step) / 4;
                    let sent = timeout(patience, replay.send(raw_messages(rng))).await;
                    what.push_str(if sent.is_ok() { "read " } else { "not read " });
                }
                self.replay = Some(replay);
            }
            Incident::AgentsClock => {
                let skew = rng.i64(-world.times.skew..=world.times.skew) * 3;
                what = format!("{skew} s");
                agent.set_clock_offset(skew);
            }
            Incident::WallSteps => {
                let step = rng.i64(-world.times.skew..=world.times.skew);
                what = format!("{step} s");
                world.clock.step_wall(step);
            }
            Incident::Eager => self.eager = Some(self.eager_source()),
            Incident::Recover => {
                agent.recover();
                self.replay = None;
            }
            _ => unreachable!("{incident:?} is a fault"),
        }
        self.say(format_args!("{incident:?} {what}"));
        world.note_keys();
    }

    /// Ends all faults. Half of the time, dead connections stay open.
    async fn recover(&mut self) {
        let world = self.world.clone();
        let agent = &world.agent;
        self.replay = None;
        agent.recover();
        agent.start_again().await.unwrap();
        agent.stop_rotating();
        agent.set_clock_offset(0);
        agent.restore();
        self.register();
        for foreign in 0..FOREIGN.len() {
            match self.rng.bool() {
                true => self.federate(foreign),
                false => self.unfederate(foreign),
            }
        }
        self.tidy_keys();
        // SPIRE's agent does this when a key is tainted, for all keys.
        agent.forget_tokens();
        let cut = self.rng.bool();
        if cut {
            agent.cut_connections().await;
            self.dead = false;
        }
        world.note_keys();
        self.say(format_args!("all faults end, cut {cut}"));
    }

    /// Ensures that the signing key is published, and that there are only a few keys.
    fn tidy_keys(&self) {
        const MOST: usize = 5;
        for (number, issuer) in self.world.issuers() {
            while issuer.key_ids().len() > MOST {
                let kids = issuer.key_ids();
                let old = kids.iter().find(|kid| **kid != issuer.signing_key_id());
                issuer.revoke(old.unwrap());
            }
            if !issuer.key_ids().contains(&issuer.signing_key_id()) {
                match number {
                    0 => drop(self.world.agent.rotate_now()),
                    _ => drop(issuer.rotate_now()),
                }
            }
        }
    }

    pub(crate) fn register(&self) {
        let (agent, life) = (&self.world.agent, self.world.times.token_life);
        agent.register(WEB, "", life).unwrap();
        agent.register(BATCH, BATCH_HINT, life).unwrap();
    }

    pub(crate) fn federate(&mut self, foreign: usize) {
        self.federated[foreign] = true;
        self.world.agent.federate_with(&self.world.foreign[foreign]);
    }

    pub(crate) fn unfederate(&mut self, foreign: usize) {
        self.federated[foreign] = false;
        self.world.agent.unfederate(FOREIGN[foreign]);
    }

    /// Returns a source that pings too often.
    pub(crate) fn eager_source(&self) -> JwtSource {
        let often = self.world.times.eager;
        let source = self.world.source(1).keepalive(often, often);
        source.build_lazy().unwrap()
    }

    /// Returns what the agent publishes without faults.
    pub(crate) fn published(&self) -> KeySets {
        let sorted = |mut kids: Vec<String>| {
            kids.sort_unstable();
            kids
        };
        let mut sets = KeySets::new();
        sets.insert(TD.to_owned(), sorted(self.world.agent.issuer().key_ids()));
        for (number, issuer) in self.world.foreign.iter().enumerate() {
            if self.federated[number] {
                let name = issuer.trust_domain().name().to_owned();
                sets.insert(name, sorted(issuer.key_ids()));
            }
        }
        sets
    }

    /// Whether every source has the published bundles, and is healthy.
    pub(crate) fn is_up_to_date(&self) -> bool {
        let published = self.published();
        self.world.stations.iter().all(|station| {
            station.source.is_healthy() && station.key_sets().as_ref() == Some(&published)
        })
    }

    pub(crate) async fn wait_until_up_to_date(&self, within: Duration, step: Duration, what: &str) {
        let began = Instant::now();
        while !self.is_up_to_date() {
            if began.elapsed() > within {
                for station in &self.world.stations {
                    let state = station.source.state();
                    let name = station.name;
                    self.say(format_args!("{name} has {:?}", station.key_sets()));
                    self.say(format_args!("{name}: {:?}", state));
                }
                self.say(format_args!("published is {:?}", self.published()));
                let what = format!("{what}: the sources do not have what is published");
                self.world.fail(&what);
            }
            self.check();
            sleep(step).await;
        }
    }

    /// Waits until servers and clients work again, within the allowed time.
    pub(crate) async fn converge(&mut self) {
        let times = self.world.times.clone();
        let began = Instant::now();
        let within = if self.dead {
            times.recovery_dead
        } else {
            times.recovery
        };
        self.wait_until_up_to_date(within, times.poll, "after the incidents")
            .await;
        let bundles = began.elapsed();
        let later = if self.invalid {
            times.recovery_invalid
        } else {
            Duration::ZERO
        };
        let within = within + times.recovery + later;
        for path in &self.paths {
            while path.go(&self.world).await != Ok(http::StatusCode::OK) {
                if began.elapsed() > within {
                    let name = &path.name;
                    self.world
                        .fail(&format!("{name}: requests do not succeed again"));
                }
                self.check();
                sleep(times.poll).await;
            }
        }
        self.check_samples(&self.samples()).await;
        let tokens = began.elapsed();
        self.say(format_args!(
            "working again: bundles after {bundles:?}, tokens after {tokens:?}"
        ));
        (self.dead, self.invalid) = (false, false);
        self.check();
    }

    pub(crate) fn say(&self, what: impl std::fmt::Display) {
        self.world.log.say("driver", what);
    }

    /// Checks all invariants that hold at every step.
    pub(crate) fn check(&self) {
        self.world.check();
        if let Some(caller) = self.callers.iter().position(JoinHandle::is_finished) {
            self.world.fail(&format!("caller {caller} has ended"));
        }
        // A client with the default ping interval is never disconnected for it.
        let too_many = self.world.agent.counts().too_many_pings;
        if self.eager.is_none() && too_many > self.too_many_pings.get() {
            self.world.fail("a client was disconnected for its pings");
        }
        self.too_many_pings.set(too_many);
    }

    /// Ends all callers. The caller of this function counts what is left.
    pub(crate) async fn finish(mut self) -> World {
        self.census(true).await;
        self.check();
        if self.world.agent.counts().too_many_pings == 0 {
            self.world
                .fail("no client was disconnected for too many pings");
        }
        if let Some(what) = self.world.tally.missing() {
            self.world.fail(&format!("there were no {what}"));
        }
        for incident in Incident::ALL {
            if !self.happened.contains_key(&incident) {
                self.world.fail(&format!("{incident:?} never happened"));
            }
        }
        self.world.gate.close();
        for caller in std::mem::take(&mut self.callers) {
            if timeout(self.world.times.call * 3, caller).await.is_err() {
                self.world.fail("a caller does not end");
            }
        }
        let world = self.world.clone();
        drop(self);
        match Shared::try_unwrap(world) {
            Ok(world) => world,
            Err(world) => world.fail("the world is still in use"),
        }
    }
}
