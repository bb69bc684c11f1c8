//! F-011, F-012, F-015: the daemon as it is, on a disk that fails. `strace` puts errors in the place of its system calls, once
//! or for as long as it is attached; small file systems are filled and turned read-only.
//!
//! While the fault is on, mail is sent, and each 250 noted. When it is over, new mail must be taken within ten seconds and
//! without a restart; SIGTERM ends it with status 0; and the next start delivers all that was acknowledged and nothing that
//! was refused.
//!
//! Skipped with a message where strace may not trace or nothing can be mounted. `CAUSEWAY_FAULT_SWEEP` asks for every fault
//! at so many occurrences; `scripts/fault-sweep` keeps the figures.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::history::number;
use crate::common::{At, Client, Daemon, PATIENCE, Reaction, Scratch, Sink, SinkPlan, relay, run, said, wait_until};

/// What the disk is asked by while the relay runs, as the kernel calls it. What only a start asks is for the model disk:
/// `spool::tests::sweep`.
const CALLS: [&str; 9] = [
    "pwritev,pwrite64",
    "fdatasync",
    "fsync",
    "openat",
    "?rename,renameat,renameat2",
    "?unlink,unlinkat",
    "fallocate",
    "pread64",
    "?statfs,fstatfs",
];
const ERRORS: [&str; 5] = ["ENOSPC", "EIO", "EMFILE", "EROFS", "EDQUOT"];

/// New mail is taken so soon after a fault.
const AGAIN: Duration = Duration::from_secs(30);

#[test]
fn f011_f012_f015_acknowledged_mail_survives_whatever_system_call_fails_and_mail_comes_again() {
    let everything = number("CAUSEWAY_FAULT_SWEEP");
    let faults: Vec<(String, &str, String)> = match everything {
        Some(occurrences) => {
            let whens = (1..=occurrences).map(|n| n.to_string()).chain(["1+".to_owned(), "2+".to_owned()]);
            let whens: Vec<String> = whens.collect();
            let product = CALLS.iter().flat_map(|call| ERRORS.iter().map(move |error| (call, error)));
            product
                .flat_map(|(call, error)| whens.iter().map(move |w| ((*call).to_owned(), *error, w.clone())))
                .collect()
        }
        None => [
            ("pwritev,pwrite64", "ENOSPC", "1"),
            ("pwritev,pwrite64", "EIO", "2+"),
            ("pwritev,pwrite64", "EROFS", "1+"),
            ("fdatasync", "EIO", "1"),
            ("fdatasync", "EIO", "3+"),
            ("fdatasync", "ENOSPC", "2"),
            ("fsync", "EIO", "1+"),
            ("openat", "EMFILE", "1+"),
            ("?unlink,unlinkat", "EIO", "1"),
            ("fallocate", "ENOSPC", "1+"),
            ("pread64", "EIO", "1+"),
            ("?statfs,fstatfs", "EIO", "1"),
        ]
        .map(|(call, error, when)| (call.to_owned(), error, when.to_owned()))
        .to_vec(),
    };
    if let Err(why) = Strace::try_on_us() {
        return eprintln!("skipped: strace cannot trace here ({why})");
    }
    let mut totals = Totals::default();
    for (call, error, when) in &faults {
        let started = Instant::now();
        // Small, so that its segments are short and new ones are made.
        let disk = Disk::small("24m");
        let mut world = World::new(&disk, "1MiB");
        let mut daemon = world.start();
        // Something is there before the fault, and the log has gone some way.
        world.send(&daemon, 4);
        assert_eq!(world.taken.len(), 4);
        let strace = Strace::attach(&daemon, &format!("{call}:error={error}:when={when}"));
        // Only of a queue that moves files are renamed and removed.
        if call.contains("rename") || call.contains("unlink") {
            world.let_go();
        }
        if call.contains("statfs") {
            // The answer that a session got is good for a second.
            wait_until("the disk is asked again", PATIENCE, || started.elapsed() > Duration::from_millis(1200));
        }
        world.send(&daemon, 16);
        let injected = strace.detach();
        let again = world.takes_again(&daemon);
        world.end_and_drain(&mut daemon);
        totals.add(&world, injected);
        eprintln!(
            "{call} {error} when={when}: {injected} times; {} taken, {} refused; again after {again:.0?}; {:.1?} in all",
            world.taken.len(),
            world.refused.len(),
            started.elapsed()
        );
    }
    let Totals { runs, hit, taken, refused } = totals;
    eprintln!("swept: {runs} runs, {hit} hit; {taken} taken, {refused} refused; 0 lost, 0 ghosts");
    assert!(everything.is_some() || hit + 2 >= runs, "only {hit} of {runs} faults were met");
}

/// F-015: for as long as it lasts, nothing can be written, made, renamed or removed: what a file system says that was turned
/// read-only. (The kernel itself does not turn one read-only in which a file is open for writing.)
#[test]
fn f015_a_spool_that_turns_read_only_refuses_and_goes_on_when_it_can_be_written() {
    if let Err(why) = Strace::try_on_us() {
        return eprintln!("skipped: strace cannot trace here ({why})");
    }
    let disk = Disk::small("96m");
    let mut world = World::new(&disk, "1MiB");
    let mut daemon = world.start();
    world.send(&daemon, 4);
    let changes = "pwritev,pwrite64,fallocate,ftruncate,?rename,renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat";
    let strace = Strace::attach(&daemon, &format!("{changes}:error=EROFS"));
    world.send(&daemon, 12);
    assert_eq!((world.taken.len(), world.refused.len()), (4, 12), "nothing can be written");
    assert!(strace.detach() > 0);
    world.takes_again(&daemon);
    world.end_and_drain(&mut daemon);
}

/// The real thing, which the kernel does to a file system whose journal it cannot write; there is no way back for it
/// but to mount it anew.
#[test]
fn f015_a_file_system_that_gives_up_refuses_mail_and_keeps_what_was_acknowledged() {
    let Some(disk) = Disk::aborting() else {
        return eprintln!("skipped: no file system can be mounted here");
    };
    let mut world = World::new(&disk, "1MiB");
    let mut daemon = world.start();
    world.send(&daemon, 6);
    let output = run(Command::new("mount").args(["-o", "remount,abort"]).arg(&disk.folder), PATIENCE);
    assert!(output.status.success(), "{}", said(&output));
    world.send(&daemon, 6);
    assert_eq!((world.taken.len(), world.refused.len()), (6, 6), "nothing can be written");
    assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log_text());
    disk.mount_again();
    daemon = world.start();
    world.takes_again(&daemon);
    world.end_and_drain(&mut daemon);
}

/// F-011: a small file system is filled with mail that cannot leave; then it can.
#[test]
fn f011_a_full_file_system_refuses_with_452_drains_and_takes_mail_again() {
    // Where the relay stops by itself, and where it is stopped by the file system.
    for min_free_space in ["2MiB", "0"] {
        let disk = Disk::small("12m");
        if !disk.is_mounted {
            return eprintln!("skipped: no file system can be mounted here");
        }
        let mut world = World::new(&disk, min_free_space);
        let mut daemon = world.start();
        for _ in 0..100 {
            world.send(&daemon, 4);
            if world.refused.len() > 8 {
                break;
            }
        }
        let (taken, refused) = (world.taken.len(), world.refused.len());
        assert!(taken > 10 && refused > 8, "{taken} taken, {refused} refused");
        assert!(world.replies.iter().all(|reply| reply.starts_with("452 4.3.1")), "{:?}", world.replies);
        // A restart meanwhile is possible without a byte left, and changes nothing.
        assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log_text());
        let filler = disk.fill();
        daemon = world.start();
        world.send(&daemon, 2);
        assert_eq!(world.taken.len(), taken, "{}", daemon.log_text());
        assert!(world.replies.iter().all(|reply| reply.starts_with("452 4.3.1")), "{:?}", world.replies);
        // The queue drains, though nothing else can be written.
        world.let_go();
        wait_until("all of it has arrived", PATIENCE, || world.missing().is_empty());
        std::fs::remove_file(filler).unwrap();
        world.takes_again(&daemon);
        world.end_and_drain(&mut daemon);
        eprintln!("{min_free_space} to stay free: {taken} taken, then 452");
    }
}

#[derive(Default)]
struct Totals {
    runs: usize,
    hit: usize,
    taken: usize,
    refused: usize,
}

impl Totals {
    fn add(&mut self, world: &World, injected: usize) {
        self.runs += 1;
        self.hit += usize::from(injected > 0);
        self.taken += world.taken.len();
        self.refused += world.refused.len();
    }
}

/// A sink that takes nothing at first, a spool on a disk, and what was said of each message.
struct World {
    scratch: Scratch,
    sink: Sink,
    config: String,
    next: u32,
    taken: BTreeSet<u32>,
    refused: BTreeSet<u32>,
    /// All that refused.
    replies: Vec<String>,
}

impl World {
    fn new(disk: &Disk, min_free_space: &str) -> Self {
        let scratch = Scratch::new();
        let busy = |at: &At<'_>| match at {
            At::Connected => Reaction::Go,
            // At each, for the client sends what follows MAIL in one go.
            _ => Reaction::Say("451 4.3.2 not now".into()),
        };
        let sink = Sink::with(SinkPlan { keep_content: false, ..SinkPlan::new() }.reacting(busy));
        let config = relay(&format!(
            r#"postmaster = "postmaster@sink.example"
shutdown_grace = "5s"

[spool]
path = "{}"
min_free_space = "{min_free_space}"
retry = ["1s"]

[tracking]
path = ""

[[accepted_domain]]
name = "sink.example"
type = "external-relay"

[[receive_connector]]
name = "in"
listen = ["127.0.0.1:0"]
origin = "on-premises"
tls = "off"

[[send_connector]]
name = "out"
address_spaces = ["sink.example"]
smart_hosts = ["{}"]
tls = "off"
"#,
            disk.folder.join("spool").display(),
            sink.address
        ));
        Self { scratch, sink, config, next: 0, taken: BTreeSet::new(), refused: BTreeSet::new(), replies: Vec::new() }
    }

    fn start(&self) -> Daemon {
        Daemon::spawn(self.scratch.path(), &self.config)
    }

    /// Sends so many, each in a session of its own; every eighth is large enough for a file of its own.
    fn send(&mut self, daemon: &Daemon, count: u32) {
        for _ in 0..count {
            self.next += 1;
            let id = self.next;
            let lines = if id.is_multiple_of(8) { 20_000 } else { 2_000 };
            let content = format!("Subject: {id}\r\n\r\n{}", format!("{id:070}\r\n").repeat(lines));
            let (from, to) = (format!("from-{id}@sink.example"), format!("to-{id}@sink.example"));
            let reply = Client::greeted(daemon.address()).and_then(|(mut client, greeting)| {
                if !greeting.starts_with("220") {
                    return Ok(greeting);
                }
                client.try_say("EHLO client.example")?;
                client.deliver(&from, &[&to], content.as_bytes())
            });
            match reply {
                Ok(reply) if reply.starts_with('2') => {
                    self.taken.insert(id);
                }
                Ok(reply) => {
                    assert!(reply.starts_with('4'), "{id}: {reply}");
                    self.refused.insert(id);
                    self.replies.push(reply);
                }
                // It may be there or not.
                Err(_) => {}
            }
        }
    }

    /// Until new mail is taken; how long that took.
    fn takes_again(&mut self, daemon: &Daemon) -> Duration {
        let began = Instant::now();
        let before = self.taken.len();
        loop {
            self.send(daemon, 1);
            if self.taken.len() > before {
                return began.elapsed();
            }
            let log = || daemon.log_text();
            assert!(began.elapsed() < AGAIN, "no mail is taken again: {:?}\n{}", self.replies.last(), log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// From now on the sink takes everything.
    fn let_go(&self) {
        self.sink.replan(SinkPlan { keep_content: false, ..SinkPlan::new() });
    }

    fn arrived(&self) -> BTreeSet<u32> {
        let id = |to: &String| to.strip_prefix("to-")?.split('@').next()?.parse().ok();
        self.sink.look(|all| all.iter().flat_map(|one| &one.to).filter_map(id).collect())
    }

    fn missing(&self) -> Vec<u32> {
        let arrived = self.arrived();
        self.taken.difference(&arrived).copied().collect()
    }

    /// SIGTERM, a start, and everything that was acknowledged arrives.
    fn end_and_drain(&mut self, daemon: &mut Daemon) {
        assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log_text());
        self.let_go();
        *daemon = self.start();
        let deadline = Instant::now() + PATIENCE;
        while !self.missing().is_empty() {
            assert!(Instant::now() < deadline, "lost: {:?}\n{}", self.missing(), daemon.log_text());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log_text());
        assert!(daemon.has_logged("\"waiting\":0"), "{}", daemon.log_text());
        let ghosts: Vec<u32> = self.arrived().intersection(&self.refused).copied().collect();
        assert!(ghosts.is_empty(), "refused and delivered: {ghosts:?}");
    }
}

/// Where the spool is: a file system of its own where one can be mounted, else a folder.
struct Disk {
    folder: PathBuf,
    is_mounted: bool,
    image: Option<PathBuf>,
    scratch: Scratch,
}

impl Disk {
    /// A tmpfs of this size.
    fn small(size: &str) -> Self {
        let mut disk = Self::bare();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "none"]).arg(&disk.folder);
        disk.is_mounted = nix::unistd::geteuid().is_root() && is_success(&mut command);
        disk
    }

    /// Takes what is left of it, to the last byte; gives the file that has it.
    fn fill(&self) -> PathBuf {
        use std::io::Write as _;
        let path = self.folder.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }

    /// An ext4 that can be told to give up.
    fn aborting() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let mut disk = Self::bare();
        let image = disk.scratch.file("image");
        std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        if !is_success(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)) {
            return None;
        }
        disk.image = Some(image);
        disk.is_mounted = is_success(&mut disk.mount());
        disk.is_mounted.then_some(disk)
    }

    fn bare() -> Self {
        let scratch = Scratch::new();
        let folder = scratch.file("disk");
        std::fs::create_dir(&folder).unwrap();
        Self { folder, is_mounted: false, image: None, scratch }
    }

    fn mount(&self) -> Command {
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", "loop,noatime,errors=remount-ro"]).args(&self.image).arg(&self.folder);
        command
    }

    fn mount_again(&self) {
        for command in [Command::new("umount").arg(&self.folder), &mut self.mount()] {
            let output = run(command, PATIENCE);
            assert!(output.status.success(), "{}", said(&output));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            // Lazily: after a failure somebody may still have a file open in it.
            let _ = is_success(Command::new("umount").arg("-l").arg(&self.folder));
        }
    }
}

fn is_success(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).output().is_ok_and(|output| output.status.success())
}

/// strace on a running daemon: the fault lasts until it is detached.
struct Strace {
    child: Child,
    log: PathBuf,
    _scratch: Scratch,
}

impl Strace {
    /// May we trace at all? Looks at a child of our own.
    fn try_on_us() -> Result<(), String> {
        let output = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(said(&output)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn attach(daemon: &Daemon, inject: &str) -> Self {
        let scratch = Scratch::new();
        let log = scratch.file("strace");
        let mut child = Command::new("strace")
            .args(["-f", "-p", &daemon.pid().to_string(), "-e", &format!("inject={inject}"), "-o"])
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        assert!(first.contains("attached"), "strace: {first}");
        // Whatever else it says is read, so that it never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        let mut strace = Self { child, log, _scratch: scratch };
        strace.wait_for_all(daemon);
        strace
    }

    /// Every thread is traced from now on.
    fn wait_for_all(&mut self, daemon: &Daemon) {
        let tasks = PathBuf::from(format!("/proc/{}/task", daemon.pid()));
        let is_traced = |task: &Path| {
            let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
            status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
        };
        wait_until("all threads are traced", PATIENCE, || {
            std::fs::read_dir(&tasks).unwrap().flatten().all(|task| is_traced(&task.path()))
        });
    }

    /// The fault is over. How often was it met?
    fn detach(mut self) -> usize {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGINT).unwrap();
        let _ = self.child.wait();
        let log = std::fs::read(&self.log).unwrap();
        String::from_utf8_lossy(&log).matches("(INJECTED)").count()
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
