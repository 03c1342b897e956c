//! The agent's Docker room against a real engine: the one that `DOCKER_HOST` names.
//!
//! The engine must run on this machine, and the tests as a user who may read its volumes: root. Nothing is pulled; the
//! only image is made of `fixtures/container_program.rs`.

#![allow(clippy::unwrap_used, reason = "a failed step of a test bed is a failed test")]

use std::collections::{BTreeMap, HashMap};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
};
use tokio::net::UnixListener;
use tokio::sync::{Notify, OnceCell};
use tokio::time::sleep;
use vsync::docker::{
    Access, ContainerUser, DockerError, Engine, HelperFile, HelperJob, HelperOutput, VolumeDescription, VolumeUse,
};
use vsync::quiesce::{Holder, Ledger, Purpose, Target, Wish};
use vsync_protocol::id::VolumeName;

/// Made anew by each run, of the same source.
const IMAGE: &str = "vsync/test:docker-engine";
const TMPFS: &[(&str, &str)] = &[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")];

#[test]
fn a_volume_is_described_as_it_was_created() {
    with_bed("described", async |bed| {
        let name = bed.volume_name("a");
        assert_eq!(bed.engine.inspect_volume(&name).await.unwrap(), None);

        let labels = pairs(&[("com.example.team", "db"), ("vsync.quiesce", "pause")]);
        let created = bed.engine.create_volume(&name, "local", &pairs(TMPFS), &labels).await.unwrap();
        assert_eq!((&created.name, created.driver.as_str()), (&name, "local"));
        assert_eq!((&created.options, &created.labels), (&pairs(TMPFS), &labels));

        assert_eq!(bed.engine.inspect_volume(&name).await.unwrap().as_ref(), Some(&created));
        let plain = bed.volume("b", &[]).await;
        let listed = bed.engine.list_volumes().await.unwrap();
        let ours: Vec<_> = listed.into_iter().filter(|volume| volume.name.as_str().starts_with(&bed.prefix)).collect();
        assert_eq!(ours, [created, plain]);

        bed.engine.remove_volume(&name).await.unwrap();
        assert_eq!(bed.engine.inspect_volume(&name).await.unwrap(), None);
        let error = bed.engine.remove_volume(&name).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot remove volume {name}")), "{error}");
    });
}

#[test]
fn the_users_of_a_volume_are_found_in_every_state() {
    with_bed("users", async |bed| {
        let volume = bed.volume("v", &[]).await;
        let other = bed.volume("other", &[]).await;
        let by_name = format!("{}:/data", volume.name);
        bed.run("running", &by_name, &["sleep"]).await;
        bed.run("paused", &by_name, &["sleep"]).await;
        bed.docker.pause_container(&bed.name("paused")).await.unwrap();
        bed.create("created", &by_name, &["sleep"]).await;
        bed.run("stranger", &format!("{}:/data", other.name), &["sleep"]).await;
        // Uses the volume, though the engine does not know.
        bed.run("by-path", &format!("{}:/data", volume.mountpoint.display()), &["sleep"]).await;

        let users = bed.engine.users_of(&volume).await.unwrap();
        let seen: Vec<_> = users.iter().map(|user| (user.name.clone(), user.running, user.paused)).collect();
        let expected = [
            (bed.name("by-path"), true, false),
            (bed.name("created"), false, false),
            (bed.name("paused"), true, true),
            (bed.name("running"), true, false),
        ];
        assert_eq!(seen, expected);
    });
}

#[test]
fn a_plain_volume_is_read_from_its_own_directory() {
    with_bed("plain", async |bed| {
        let volume = bed.volume("v", &[]).await;
        let Access::Direct(path) = bed.engine.access_to(&volume).await.unwrap() else { panic!("not direct") };
        fs::write(path.join("file"), "text").unwrap();
        // The proof of identity holds after the directory has changed, too.
        sleep(Duration::from_millis(1100)).await;
        fs::write(path.join("file2"), "text").unwrap();
        assert_eq!(bed.engine.access_to(&volume).await.unwrap(), Access::Direct(path.clone()));
    });
}

#[test]
fn a_tmpfs_volume_is_never_read_as_empty() {
    with_bed("tmpfs", async |bed| {
        let volume = bed.volume("v", TMPFS).await;
        let Access::Refused { reason } = bed.engine.access_to(&volume).await.unwrap() else { panic!("not refused") };
        assert!(reason.contains(volume.name.as_str()), "{reason}");

        let user = bed.run("user", &format!("{}:/data", volume.name), &["write-and-sleep", "/data/a", "kept"]).await;
        assert_eq!(bed.engine.access_to(&volume).await.unwrap(), Access::Helper);
        bed.until(async || fs::exists(volume.mountpoint.join("a")).unwrap()).await;
        let (code, out, _) = bed.report(&volume.name, VolumeUse::Read, 0).await.unwrap();
        assert_eq!(code, 0);
        assert!(out.contains(r#"volume: ["a=kept"]"#), "{out}");

        bed.remove(&user).await;
        assert!(matches!(bed.engine.access_to(&volume).await.unwrap(), Access::Refused { .. }));
    });
}

#[test]
fn a_volume_that_binds_a_directory_is_read_through_a_helper() {
    with_bed("bind", async |bed| {
        fs::write(bed.scratch.path().join("a"), "bound").unwrap();
        let device = bed.scratch.path().to_str().unwrap();
        let volume = bed.volume("v", &[("type", "none"), ("o", "bind"), ("device", device)]).await;
        assert_eq!(fs::read_dir(&volume.mountpoint).unwrap().count(), 0, "the trap: unmounted, it looks empty");
        assert_eq!(bed.engine.access_to(&volume).await.unwrap(), Access::Helper);
        let (_, out, _) = bed.report(&volume.name, VolumeUse::Read, 0).await.unwrap();
        assert!(out.contains(r#"volume: ["a=bound"]"#), "{out}");
    });
}

#[test]
fn a_helper_sees_the_volume_and_its_files_and_its_exit_code_and_output_come_back() {
    with_bed("helper", async |bed| {
        let volume = bed.volume("v", &[]).await;
        let private = volume.mountpoint.join("a");
        fs::write(&private, "1").unwrap();
        chown(&private, Some(999), Some(999)).unwrap();
        fs::set_permissions(&private, Permissions::from_mode(0o000)).unwrap();

        let (code, out, err) = bed.report(&volume.name, VolumeUse::Read, 42).await.unwrap();
        assert_eq!(code, 42);
        assert_eq!(
            out.lines().collect::<Vec<_>>(),
            [
                "greeting: hello helper",
                "/vsync/config/vsync.toml: [realm] 600 in 700",
                "/vsync/config/keys/agent.key: secret 600 in 700",
                r#"volume: ["a=1"]"#,
                "volume is writable: false",
                "owners can be set: false",
                "state is writable: true",
            ]
        );
        assert_eq!(err, "this is standard error\n");

        let (code, out, _) = bed.report(&volume.name, VolumeUse::Write, 0).await.unwrap();
        assert_eq!(code, 0);
        assert!(out.contains("volume is writable: true\nowners can be set: true"), "{out}");
        let written = fs::metadata(volume.mountpoint.join("from-helper")).unwrap();
        assert_eq!((written.len(), written.uid(), written.gid()), (1, 999, 998));
        assert_eq!(bed.helpers_of(&volume.name).await, 0, "a helper was left behind");
    });
}

#[test]
fn a_helper_without_volume_is_refused_and_creates_none() {
    with_bed("no-volume", async |bed| {
        let name = bed.volume_name("absent");
        let error = bed.report(&name, VolumeUse::Read, 0).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("there is no volume {name} on the engine")), "{error}");
        assert_eq!(bed.engine.inspect_volume(&name).await.unwrap(), None);
    });
}

#[test]
fn a_helper_that_nobody_waits_for_any_more_is_removed() {
    with_bed("cancelled", async |bed| {
        let volume = bed.volume("v", &[]).await;
        let arguments = &["write-and-sleep", &format!("/vsync/volumes/{}/a", volume.name), "x"];
        let job = bed.job(&volume.name, VolumeUse::Write, arguments);
        let (mut heard, written) = (String::new(), Notify::new());
        let mut listen = |output: HelperOutput<'_>| {
            let (HelperOutput::Out(bytes) | HelperOutput::Err(bytes)) = output;
            heard.push_str(&String::from_utf8_lossy(bytes));
            written.notify_one();
        };
        tokio::select! {
            ended = bed.engine.run_helper(&job, &mut listen) => panic!("the helper ended by itself: {ended:?}"),
            () = written.notified() => {}
        }
        assert_eq!(heard, "written\n", "output comes while the helper runs");
        assert_eq!(bed.helpers_of(&volume.name).await, 0, "a helper was left behind");
    });
}

#[test]
fn a_helper_without_image_says_how_to_get_one() {
    with_bed("no-image", async |bed| {
        let volume = bed.volume("v", &[]).await;
        let job = HelperJob { image: "vsync/absent:1".into(), ..bed.job(&volume.name, VolumeUse::Read, &[]) };
        // This test is a dynamically linked program, so no image can be made of it.
        let error = bed.engine.run_helper(&job, &mut |_| {}).await.unwrap_err();
        assert!(matches!(error, DockerError::NoImage { .. }), "{error}");
        let text = error.to_string();
        for part in
            ["helper image vsync/absent:1 is missing", "not a statically linked", "docker build -t vsync/absent:1"]
        {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    });
}

#[test]
fn stopped_containers_are_started_again_and_only_those() {
    with_bed("hold", async |bed| {
        let volume = bed.volume("v", &[]).await;
        let by_name = format!("{}:/data", volume.name);
        bed.run("a", &by_name, &["sleep"]).await;
        bed.run("b", &by_name, &["sleep"]).await;
        bed.create("idle", &by_name, &["sleep"]).await;
        let running = async || {
            let users = bed.engine.users_of(&volume).await.unwrap();
            users.into_iter().filter(|user| user.running).map(|user| user.name).collect::<Vec<_>>()
        };
        let both = [bed.name("a"), bed.name("b")];
        let holder = bed.holder(&volume);

        let hold = holder.hold(&|| false).await.unwrap();
        assert_eq!(running().await, [""; 0]);
        let released = hold.release("restored").await;
        assert_eq!(released.containers, both.clone().map(|name| (name, "stop")));
        assert!(released.not_released.is_empty(), "{released:?}");
        assert_eq!(running().await, both);

        drop(holder.hold(&|| false).await.unwrap());
        assert_eq!(running().await, both, "dropping starts them again");

        let hold = holder.hold(&|| false).await.unwrap();
        bed.remove(&bed.name("b")).await;
        let stuck = hold.release("restored").await.not_released;
        let names: Vec<_> = stuck.iter().map(|stuck| stuck.container.clone()).collect();
        assert_eq!(names, [bed.name("b")]);
        assert_eq!(running().await, [bed.name("a")], "one failure does not keep the others down");
    });
}

#[test]
fn a_paused_container_is_not_stopped_nor_are_those_before_it() {
    with_bed("hold-paused", async |bed| {
        let volume = bed.volume("v", &[]).await;
        let by_name = format!("{}:/data", volume.name);
        bed.run("a", &by_name, &["sleep"]).await;
        bed.run("b", &by_name, &["sleep"]).await;
        bed.docker.pause_container(&bed.name("b")).await.unwrap();
        let before = bed.engine.users_of(&volume).await.unwrap();
        let Err(error) = bed.holder(&volume).hold(&|| false).await else { panic!("held") };
        assert!(error.to_string().contains(&bed.name("b")), "{error}");
        let after: Vec<ContainerUser> = bed.engine.users_of(&volume).await.unwrap();
        assert_eq!(after, before);
    });
}

#[test]
fn a_missing_engine_is_reported_at_once_with_the_way_out() {
    runtime().block_on(async {
        for host in ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "ssh://nobody@127.0.0.1"] {
            let started = Instant::now();
            let error = Engine::connect_to(host).await.unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("no Docker engine answers at {host}; start it, set DOCKER_HOST")),
                "{text}"
            );
            assert!(started.elapsed() < Duration::from_secs(2));
        }
    });
}

#[test]
fn a_silent_engine_is_not_waited_for() {
    runtime().block_on(async {
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("docker.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let error = Engine::connect_to(&format!("unix://{}", socket.display())).await.unwrap_err();
        assert!(matches!(error, DockerError::Silent { .. }), "{error}");
        assert!(error.to_string().contains("did not answer within 5 s"), "{error}");
    });
}

/// One test's volumes and containers, all named after it, and gone when it ends.
struct Bed {
    engine: Engine,
    /// For what vsync itself does not do: make users of volumes.
    docker: Docker,
    prefix: String,
    scratch: tempfile::TempDir,
}

/// Runs `test` with a bed, and cleans up even if it fails.
fn with_bed(name: &str, test: impl AsyncFnOnce(&Bed)) {
    let runtime = runtime();
    let bed = runtime.block_on(Bed::make(name));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(test(&bed))));
    runtime.block_on(bed.clean());
    if let Err(failure) = outcome {
        panic::resume_unwind(failure);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

impl Bed {
    async fn make(test: &str) -> Self {
        let engine = match Engine::connect().await {
            Ok(engine) => engine,
            Err(error) => panic!("These tests need a Docker engine, and are never skipped. {error}"),
        };
        static IMPORTED: OnceCell<()> = OnceCell::const_new();
        let import = async || {
            let scratch = tempfile::tempdir().unwrap();
            engine.import_helper_image(IMAGE, &container_program(scratch.path())).await.unwrap();
        };
        IMPORTED.get_or_init(import).await;
        let docker = Docker::connect_with_host(engine.host()).unwrap();
        let prefix = format!("vsync-test-{}-{test}-", std::process::id());
        Self { engine, docker, prefix, scratch: tempfile::tempdir().unwrap() }
    }

    /// What holds the users of a volume that is restored.
    fn holder(&self, volume: &VolumeDescription) -> Holder {
        Holder {
            engine: self.engine.clone(),
            ledger: Ledger::below(self.scratch.path()),
            target: Target::Volume(volume.clone()),
            purpose: Purpose::Restore,
            wish: Wish::default(),
            over: None,
            say: Arc::new(|line| eprintln!("{line}")),
        }
    }

    async fn clean(&self) {
        let everything = ListContainersOptionsBuilder::default().all(true);
        let mine = everything.filters(&HashMap::from([("name", vec![self.prefix.as_str()])])).build();
        for container in self.docker.list_containers(Some(mine)).await.unwrap() {
            self.remove(&container.id.unwrap()).await;
        }
        for volume in self.engine.list_volumes().await.unwrap() {
            if volume.name.as_str().starts_with(&self.prefix) {
                self.engine.remove_volume(&volume.name).await.unwrap();
            }
        }
    }

    fn name(&self, short: &str) -> String {
        format!("{}{short}", self.prefix)
    }

    fn volume_name(&self, short: &str) -> VolumeName {
        self.name(short).parse().unwrap()
    }

    async fn volume(&self, short: &str, options: &[(&str, &str)]) -> VolumeDescription {
        let name = self.volume_name(short);
        self.engine.create_volume(&name, "local", &pairs(options), &BTreeMap::new()).await.unwrap()
    }

    /// Creates a container that binds `bind` and would run `arguments`; answers with its name.
    async fn create(&self, short: &str, bind: &str, arguments: &[&str]) -> String {
        let name = self.name(short);
        let body = ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            cmd: Some(arguments.iter().map(|&argument| argument.to_owned()).collect()),
            stop_timeout: Some(0),
            host_config: Some(HostConfig {
                binds: Some(vec![bind.to_owned()]),
                network_mode: Some("none".to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        self.docker.create_container(Some(options), body).await.unwrap();
        name
    }

    async fn run(&self, short: &str, bind: &str, arguments: &[&str]) -> String {
        let name = self.create(short, bind, arguments).await;
        self.docker.start_container(&name, None::<StartContainerOptions>).await.unwrap();
        name
    }

    async fn remove(&self, container: &str) {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        self.docker.remove_container(container, Some(options)).await.unwrap();
    }

    fn job(&self, volume: &VolumeName, volume_use: VolumeUse, arguments: &[&str]) -> HelperJob {
        let file = |path: &str, contents: &str| HelperFile {
            path: path.to_owned(),
            contents: contents.as_bytes().to_vec().into(),
        };
        HelperJob {
            image: IMAGE.to_owned(),
            volume: volume.clone(),
            volume_use,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: pairs(&[("GREETING", "hello helper")]),
            files: vec![file("vsync.toml", "[realm]"), file("keys/agent.key", "secret")],
        }
    }

    /// Runs a helper that reports what it sees; answers with its exit code, standard output and standard error.
    async fn report(
        &self,
        volume: &VolumeName,
        volume_use: VolumeUse,
        code: u8,
    ) -> Result<(u8, String, String), DockerError> {
        let directory = format!("/vsync/volumes/{volume}");
        let job = self.job(volume, volume_use, &["report", &directory, &code.to_string()]);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = self
            .engine
            .run_helper(&job, &mut |output| match output {
                HelperOutput::Out(bytes) => out.extend_from_slice(bytes),
                HelperOutput::Err(bytes) => err.extend_from_slice(bytes),
            })
            .await?;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ok((code, text(out), text(err)))
    }

    async fn helpers_of(&self, volume: &VolumeName) -> usize {
        let label = format!("vsync.helper={volume}");
        let filters = HashMap::from([("label", vec![label.as_str()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.docker.list_containers(Some(options)).await.unwrap().len()
    }

    async fn until(&self, condition: impl AsyncFn() -> bool) {
        let started = Instant::now();
        while !condition().await {
            assert!(started.elapsed() < Duration::from_secs(20), "it never came true");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Compiles the program that the containers run.
fn container_program(directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/container_program.rs");
    let program = directory.join("container_program");
    let compiled = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition=2024", "-Ctarget-feature=+crt-static", "-Copt-level=s", "-Cstrip=symbols", "-o"])
        .args([&program, &source])
        .output()
        .expect("rustc runs");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    program
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}
