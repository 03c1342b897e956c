//! Who does what in a round.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{AGENTS, Counts, Round, volume_name};
use crate::site::Summary;
use crate::{Damage, Output, Place, Rng, Server, Tree, Volume, Vsync};

impl Round {
    pub(super) fn host(&self, number: usize) -> Vsync {
        self.realm.vsync(&format!("host{number}"))
    }

    fn office(&self) -> Vsync {
        self.realm.vsync("store")
    }

    /// A machine whose volume changes, and which backs it up and restores.
    pub(super) fn agent(&self, number: usize, mut rng: Rng, counts: &Counts) {
        let target = crate::scratch();
        while !self.is_over() {
            change(&self.volumes[number], &mut rng);
            self.back_up(number, &mut rng, counts);
            if rng.below(4) == 0 {
                self.restore_any(number, target.path(), &mut rng, counts);
            }
            if rng.below(12) == 0 {
                // A cache is no more than that.
                crate::shell::run("rm", ["-rf".as_ref(), self.host(number).home().join("state").as_os_str()]);
                counts.add("agents that lost their state");
            }
        }
    }

    fn back_up(&self, number: usize, rng: &mut Rng, counts: &Counts) {
        let tree = Tree::read(self.volumes[number].path());
        let running = self.host(number).spawn(["backup", &volume_name(number), "--json"]);
        let killed = rng.below(5) == 0;
        let done = if killed {
            std::thread::sleep(Duration::from_millis(rng.below(1200)));
            counts.add("agents killed");
            running.kill()
        } else {
            running.wait()
        };
        self.sane(&done);
        if done.status() == Some(0) {
            let id = Summary::of(&done).text("snapshot_id").to_owned();
            counts.add("backups acknowledged");
            return self.known(number).acknowledged.push((id, tree));
        }
        self.known(number).attempted.push(tree);
        match done.status() {
            None => {}
            Some(10) => counts.add("backups without a server"),
            Some(21) if self.was_filled() => counts.add("backups refused for space"),
            Some(1) if self.was_filled() => counts.add("backups failed on a full disk"),
            Some(13) if self.damaging => counts.add("backups that met damage"),
            _ => panic!("a backup fails without a reason: {done}"),
        }
    }

    fn restore_any(&self, number: usize, target: &std::path::Path, rng: &mut Rng, counts: &Counts) {
        let chosen = {
            let known = self.known(number);
            if known.acknowledged.is_empty() {
                return;
            }
            rng.pick(&known.acknowledged).clone()
        };
        let what = format!("{}@{}", volume_name(number), chosen.0);
        let running =
            self.host(number).spawn(["restore", &what, "--delete", "--to-path", target.to_str().expect("a path")]);
        if rng.below(5) == 0 {
            std::thread::sleep(Duration::from_millis(rng.below(700)));
            counts.add("restores killed");
            return self.sane(&running.kill());
        }
        let done = running.wait();
        self.sane(&done);
        let given_up = self.given_up().contains(&chosen.0) || self.may_be_retired(number, &chosen.0);
        match done.status() {
            Some(0) => {
                let differences = chosen.1.differences(&Tree::read(target));
                assert!(differences.is_empty(), "{what} was restored wrongly: {differences:#?}");
                counts.add("restores while all goes on");
            }
            Some(10) => counts.add("restores without a server"),
            Some(11 | 13) if given_up => counts.add("restores of what was given up"),
            Some(13) if self.damaging => counts.add("restores that met damage"),
            _ => panic!("{what} cannot be restored: {done}"),
        }
    }

    /// Whether retention may have forgotten a snapshot: it keeps twelve of each volume.
    pub(super) fn may_be_retired(&self, number: usize, id: &str) -> bool {
        let known = self.known(number);
        let after = known.acknowledged.iter().rev().position(|(other, _)| other == id);
        // Those that were committed without a receipt count, too.
        after.is_none_or(|after| after + known.attempted.len() + 1 >= 12)
    }

    /// Forgets, brings back, collects and scrubs.
    pub(super) fn administrator(&self, mut rng: Rng, counts: &Counts) {
        while !self.is_over() {
            std::thread::sleep(Duration::from_millis(rng.below(1500)));
            match rng.below(8) {
                0..=2 => self.forget(&mut rng, counts),
                3 => {
                    let forgotten: Vec<String> = self.given_up().iter().cloned().collect();
                    if !forgotten.is_empty() {
                        let done = self.office().run(["undelete", rng.pick(&forgotten).as_str()]);
                        self.ordered(&done, &[1, 11], "brought back", counts);
                    }
                }
                4..=6 => {
                    let orders: [&[&str]; 2] =
                        [&["server", "gc", "--at-once", "--empty-trash"], &["server", "gc", "--at-once"]];
                    let words = *rng.pick(&orders);
                    for _ in 0..3 {
                        self.ordered(&self.office().run(words), &[], "rounds of collection", counts);
                    }
                }
                _ => self.ordered(&self.office().run(["server", "scrub"]), &[], "scrubs", counts),
            }
        }
    }

    fn forget(&self, rng: &mut Rng, counts: &Counts) {
        let number = usize::try_from(rng.below(AGENTS as u64)).expect("a number");
        let chosen = {
            let known = self.known(number);
            // The newest stays in any case.
            let Some((_, older)) = known.acknowledged.split_last().filter(|(_, older)| !older.is_empty()) else {
                return;
            };
            rng.pick(older).0.clone()
        };
        self.given_up().insert(chosen.clone());
        self.ordered(&self.office().run(["forget", &chosen]), &[1, 11], "forgotten", counts);
    }

    /// An order may find the server away, the disk full or, in some rounds, damage; `usual` is what else may come.
    fn ordered(&self, done: &Output, usual: &[i32], kind: &'static str, counts: &Counts) {
        self.sane(done);
        match done.status() {
            Some(0) => counts.add(kind),
            Some(10) => counts.add("orders without a server"),
            Some(1 | 21) if self.was_filled() => counts.add("orders failed on a full disk"),
            Some(13) if self.damaging => counts.add("orders that met damage"),
            Some(code) if usual.contains(&code) => counts.add("orders refused"),
            // A server that was killed and not yet back has left its store to whoever comes.
            Some(1) if done.stderr().contains("in use by another process") => counts.add("orders without a server"),
            _ => panic!("an order fails without a reason: {done}"),
        }
    }

    /// Kills the server at any instant, fills its disk, flips bits.
    pub(super) fn killer(&self, mut rng: Rng, counts: &Counts) {
        while !self.is_over() {
            std::thread::sleep(Duration::from_millis(300 + rng.below(5000)));
            match rng.below(10) {
                0..=4 => self.kill_server(counts, || {}),
                5..=7 => {
                    let works: [&[&str]; 4] = [
                        &["server", "rebuild"],
                        &["server", "gc", "--at-once", "--empty-trash"],
                        &["server", "scrub"],
                        &["server", "rebuild", "--rehash"],
                    ];
                    let words = *rng.pick(&works);
                    let after = Duration::from_millis(rng.below(600));
                    self.kill_server(counts, || {
                        let offline = self.office().spawn(words);
                        std::thread::sleep(after);
                        self.sane(&offline.kill());
                        counts.add("offline work killed");
                    });
                }
                8 => self.fill_disk(&mut rng, counts),
                _ if self.damaging => self.kill_server(counts, || {
                    Place::Pack.files(&self.realm.store("store")).first().inspect(|_| {
                        Place::Pack.damage(&self.realm.store("store"), Damage::FlipBit, rng.next_u64());
                        counts.add("bits flipped");
                    });
                }),
                _ => {}
            }
        }
    }

    fn kill_server(&self, counts: &Counts, meanwhile: impl FnOnce()) {
        let mut server = self.server();
        server.take().expect("a server").kill();
        counts.add("servers killed");
        meanwhile();
        *server = Some(self.serve());
    }

    /// Starts the server, as often as it takes: an order may be at work on the store meanwhile.
    pub(super) fn serve(&self) -> Server {
        loop {
            match Server::try_start(self.office()) {
                Ok(server) => return server,
                Err(ended) => assert!(ended.stderr().contains("in use by another process"), "{ended}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn fill_disk(&self, rng: &mut Rng, counts: &Counts) {
        self.filled.store(true, Ordering::Relaxed);
        let filled = self.disk.fill_but(*rng.pick(&[0, 4096, 1 << 20, 900 << 20]));
        counts.add("times the disk was full");
        std::thread::sleep(Duration::from_millis(500 + rng.below(2500)));
        if rng.below(2) == 0 {
            // Also a server that begins on a full disk must not lose anything. It may refuse to.
            let mut server = self.server();
            server.take().expect("a server").kill();
            let office = self.office().limit(Duration::from_secs(5));
            drop(office.spawn(["server", "run"]));
            drop(filled);
            *server = Some(self.serve());
        } else {
            drop(filled);
            // What could not be written has stopped it; somebody has made room and starts it again.
            self.kill_server(counts, || {});
        }
    }

    fn was_filled(&self) -> bool {
        self.filled.load(Ordering::Relaxed)
    }

    fn sane(&self, done: &Output) {
        assert!(!done.stderr().contains("panicked"), "{done}");
        let server = self.server.try_lock().ok();
        let log = server.and_then(|server| server.as_ref().and_then(Server::log_if_running)).unwrap_or_default();
        assert!(!log.contains("panicked"), "the server has panicked: {log}");
    }
}

/// Some changes of a volume; machines share content, so that what one has another needs not send.
fn change(volume: &Volume, rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        let name = format!("files/{}", rng.below(30));
        let exists = volume.path().join(&name).exists();
        match rng.below(8) {
            0 | 1 => drop(volume.random(&name, rng.below(3 << 20))),
            2 => drop(volume.text(&name, rng.below(1 << 20))),
            3 => drop(volume.many(format!("many/{}", rng.below(4)), 1 + rng.below(150), 3000)),
            4 if exists => {
                let bytes = rng.bytes(5000);
                let _ = volume.patch(&name, rng.below(1 << 20), bytes);
            }
            5 if exists => drop(volume.resize(&name, rng.below(2 << 20))),
            6 if exists => drop(volume.rename(&name, format!("files/{}", rng.below(30)))),
            7 if exists => drop(volume.remove(&name)),
            _ => drop(volume.write(format!("new/{}", rng.next_u64()), rng.text(300))),
        }
    }
}
