use std::collections::BTreeMap;

use super::*;

const GRACE: Option<Duration> = Some(Duration::from_secs(10));
const STOP: Action = Action::Stop { timeout: None, grace: GRACE };

fn user(status: ContainerStatus) -> (ContainerUser, ContainerFacts) {
    let running = status != ContainerStatus::Down;
    let user = ContainerUser {
        id: "1".into(),
        name: "db".into(),
        running,
        paused: status == ContainerStatus::Paused,
        read_only: false,
        role: ContainerRole::Application,
    };
    let facts = ContainerFacts {
        id: "1".into(),
        name: "db".into(),
        status,
        started_at: "then".into(),
        auto_remove: false,
        swarm_task: false,
        labels: BTreeMap::new(),
        grace: GRACE,
    };
    (user, facts)
}

fn with(change: impl FnOnce(&mut ContainerUser, &mut ContainerFacts)) -> (ContainerUser, ContainerFacts) {
    let mut pair = user(ContainerStatus::Running);
    change(&mut pair.0, &mut pair.1);
    pair
}

fn labelled(labels: &[(&str, &str)]) -> (ContainerUser, ContainerFacts) {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    with(|_, facts| facts.labels = labels)
}

fn wish(mode: Quiesce) -> Wish {
    Wish { mode: Some(mode), ..Wish::default() }
}

/// The action for one user when the volume is backed up.
fn action(volume: &Wish, over: Option<Quiesce>, user: (ContainerUser, ContainerFacts)) -> Option<Action> {
    let plan = plan(Purpose::Backup, volume, over, &[user]).unwrap();
    plan.steps.first().and_then(|step| step.action)
}

fn refusal(purpose: Purpose, mode: Quiesce, user: (ContainerUser, ContainerFacts)) -> String {
    plan(purpose, &wish(mode), None, &[user]).unwrap_err().to_string()
}

#[test]
fn each_mode_meets_each_state() {
    use ContainerStatus::{Down, Paused, Restarting, Running};
    for (mode, status, expected) in [
        (Quiesce::None, Running, None),
        (Quiesce::Pause, Running, Some(Action::Pause)),
        (Quiesce::Pause, Paused, None),
        (Quiesce::Pause, Restarting, Some(STOP)),
        (Quiesce::Pause, Down, None),
        (Quiesce::Stop, Running, Some(STOP)),
        (Quiesce::Stop, Paused, None),
        (Quiesce::Stop, Restarting, Some(STOP)),
        (Quiesce::Stop, Down, None),
        (Quiesce::Hooks, Running, None),
    ] {
        assert_eq!(action(&wish(mode), None, user(status)), expected, "{mode:?} {status:?}");
    }
}

#[test]
fn the_command_line_beats_labels_and_labels_beat_the_configuration() {
    let paused = wish(Quiesce::Pause);
    let stop = || labelled(&[("vsync.quiesce", "stop")]);
    assert_eq!(action(&paused, None, stop()), Some(STOP));
    assert_eq!(action(&paused, Some(Quiesce::Pause), stop()), Some(Action::Pause));
    assert_eq!(action(&paused, Some(Quiesce::None), stop()), None);
    assert_eq!(action(&paused, None, labelled(&[("vsync.quiesce", "none")])), None);
    assert_eq!(action(&Wish::default(), None, labelled(&[("vsync.quiesce", "pause")])), Some(Action::Pause));
    let timed = labelled(&[("vsync.quiesce", "stop"), ("vsync.stop-timeout", "60")]);
    let timeout = Some(Duration::from_secs(60));
    assert_eq!(action(&Wish::default(), None, timed), Some(Action::Stop { timeout, grace: GRACE }));
}

#[test]
fn who_only_reads_is_held_only_if_its_own_label_says_so() {
    let reader = |labels: &[(&str, &str)]| {
        let mut pair = labelled(labels);
        pair.0.read_only = true;
        pair
    };
    assert_eq!(action(&wish(Quiesce::Pause), None, reader(&[])), None);
    assert_eq!(action(&wish(Quiesce::Stop), Some(Quiesce::Stop), reader(&[])), None);
    assert_eq!(action(&wish(Quiesce::Pause), None, reader(&[("vsync.quiesce", "stop")])), Some(STOP));
    let restore = plan(Purpose::Restore, &Wish::default(), None, &[reader(&[])]).unwrap();
    assert_eq!(restore.steps[0].action, Some(STOP), "it would see files change below it");
}

#[test]
fn commands_are_run_beside_every_mode_and_alone() {
    let commands = [("vsync.exec-pre", "before"), ("vsync.exec-post", "after"), ("vsync.exec-user", "70")];
    for (mode, expected) in [(None, None), (Some(Quiesce::Pause), Some(Action::Pause)), (Some(Quiesce::Hooks), None)] {
        let plan = plan(Purpose::Backup, &Wish::default(), mode, &[labelled(&commands)]).unwrap();
        let step = &plan.steps[0];
        assert_eq!(step.action, expected);
        let pre = step.pre.as_ref().unwrap();
        assert_eq!((pre.command.clone(), pre.user.as_deref()), (Command::Line("before".into()), Some("70")));
        assert_eq!((pre.timeout, pre.failure), (HOOK_TIMEOUT, HookFailure::Fail));
        assert_eq!(step.post.as_ref().unwrap().command, Command::Line("after".into()));
    }
    let none = plan(Purpose::Backup, &Wish::default(), Some(Quiesce::None), &[labelled(&commands)]).unwrap();
    assert!(none.is_empty());
}

#[test]
fn what_could_not_be_brought_back_is_not_stopped() {
    let removed = || with(|_, facts| facts.auto_remove = true);
    let task = || with(|_, facts| facts.swarm_task = true);
    for purpose in [Purpose::Backup, Purpose::Restore] {
        assert!(refusal(purpose, Quiesce::Stop, removed()).contains("--rm"));
        assert!(refusal(purpose, Quiesce::Stop, task()).contains("scale the service"));
    }
    assert_eq!(action(&wish(Quiesce::Pause), None, removed()), Some(Action::Pause), "pausing removes nothing");
    assert!(refusal(Purpose::Restore, Quiesce::None, user(ContainerStatus::Paused)).contains("docker unpause"));
    let helper = || with(|user, _| user.role = ContainerRole::Helper);
    assert!(refusal(Purpose::Restore, Quiesce::None, helper()).contains("vsync helper at work"));
    assert!(refusal(Purpose::Backup, Quiesce::Pause, helper()).contains("vsync helper at work"));
    assert_eq!(action(&Wish::default(), None, helper()), None);
    let ourselves = with(|user, _| user.role = ContainerRole::Ourselves);
    assert_eq!(action(&wish(Quiesce::Stop), None, ourselves), None);
    let mistaken = labelled(&[("vsync.quiesce", "freeze")]);
    assert!(refusal(Purpose::Backup, Quiesce::None, mistaken).contains("db has the label vsync.quiesce=\"freeze\""));
}

#[test]
fn a_snapshot_claims_the_weakest_that_is_done() {
    let mode = |users: &[(ContainerUser, ContainerFacts)]| {
        plan(Purpose::Backup, &wish(Quiesce::Pause), None, users).unwrap().mode
    };
    let running = || user(ContainerStatus::Running);
    assert_eq!(mode(&[]), Quiesce::Pause);
    assert_eq!(mode(&[running(), labelled(&[("vsync.quiesce", "stop")])]), Quiesce::Pause);
    assert_eq!(mode(&[running(), labelled(&[("vsync.quiesce", "none")])]), Quiesce::None);
    assert_eq!(mode(&[labelled(&[("vsync.quiesce", "stop")])]), Quiesce::Stop);
    assert_eq!(mode(&[user(ContainerStatus::Down)]), Quiesce::Pause);
}
