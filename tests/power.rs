//! F-018, the power cut, on a real file system: ext4 on a loop device is shut down without its log being flushed
//! (`EXT4_IOC_SHUTDOWN`), in the middle of the load or of a start. From that instant nothing reaches the device, and
//! what was not synced is gone. The daemon is killed, the file system is mounted again, which recovers its journal, and the
//! daemon starts on what is left. In the end everybody is asked what they know (`common::history`).
//!
//! Needs root and a loop device, and is skipped where there is none; the model disk of `spool::tests` covers every machine.
//!
//! `CAUSEWAY_POWER_CUTS` asks for more cuts, `CAUSEWAY_CRASH_SEED` repeats the decisions of a run;
//! `scripts/power-cut` keeps the figures.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::history::{DURABLE, Load, Run, number};
use common::{PATIENCE, Scratch, run};

/// How the journal treats content: written before the names that lead to it, in any order, or through the journal itself.
const MODES: [&str; 3] = ["data=ordered", "data=writeback", "data=journal"];

/// Room for all that a long run leaves waiting; the image is sparse.
const SIZE: u64 = 2 << 30;

#[test]
fn f018_nothing_acknowledged_is_lost_whenever_the_power_fails() {
    let mut volume = match Volume::make() {
        Ok(volume) => volume,
        Err(why) => return eprintln!("skipped: no file system can be mounted here ({why})"),
    };
    let mut run = Run::with(DURABLE, Scratch::new(), volume.folder.join("spool"));
    let cuts = number("CAUSEWAY_POWER_CUTS").unwrap_or(4);
    let mut at_start = 0;
    for cut in 0..cuts {
        let started = Instant::now();
        let mut cutter = Cutter::aim(&volume.folder);
        // Every fourth start is cut off itself, and never all of them: a run is to take mail.
        let mut daemon = if cut % 4 == 1 {
            at_start += 1;
            let daemon = run.launch(&[]);
            pass(Duration::from_micros(run.random.u64(0..100_000)));
            cutter.cut(&mut run);
            daemon
        } else {
            let mut daemon = run.start(&[]);
            let load = Load::on(&run, daemon.address());
            let enough = run.random.u64(10..120);
            run.wait_for_load(enough, &mut daemon);
            // Somewhere in the middle of whatever comes next.
            pass(Duration::from_micros(run.random.u64(0..20_000)));
            cutter.cut(&mut run);
            // Whatever it says from now on, it says with a dead disk.
            pass(Duration::from_micros(run.random.u64(0..30_000)));
            daemon.kill9();
            load.end();
            daemon
        };
        daemon.kill9();
        run.crashes.push(Instant::now());
        run.history.power_is_out.store(false, Ordering::Relaxed);
        let mode = MODES[run.random.usize(..MODES.len())];
        volume.mount_again(mode);
        eprintln!("cut {cut} ({:.1?}, then {mode}): {}", started.elapsed(), run.tally());
    }
    eprintln!("{cuts} cuts, {at_start} of them at a start");
    run.drain_and_judge();
}

/// Lets so much time pass, to the microsecond: the moment is to be any, not the next tick of a timer.
fn pass(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// An ext4 of its own, gone when dropped.
struct Volume {
    image: PathBuf,
    folder: PathBuf,
    /// Removed after the file system in it was unmounted, or it could not be.
    _scratch: Scratch,
}

impl Volume {
    fn make() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("we are not root".into());
        }
        let scratch = Scratch::new();
        let volume = Self { image: scratch.file("image"), folder: scratch.file("volume"), _scratch: scratch };
        std::fs::create_dir(&volume.folder).unwrap();
        let image = std::fs::File::create(&volume.image).unwrap();
        image.set_len(SIZE).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&volume.image).stdin(Stdio::null()).output();
        let made = made.map_err(|error| format!("mkfs.ext4: {error}"))?;
        if !made.status.success() {
            return Err(common::said(&made));
        }
        volume.mount(MODES[0])?;
        Ok(volume)
    }

    fn mount(&self, mode: &str) -> Result<(), String> {
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", &format!("loop,noatime,{mode}")]).args([&self.image, &self.folder]);
        let output = command.stdin(Stdio::null()).output().map_err(|error| format!("mount: {error}"))?;
        if output.status.success() { Ok(()) } else { Err(common::said(&output)) }
    }

    /// The journal is recovered, as after every power cut.
    fn mount_again(&mut self, mode: &str) {
        let output = run(Command::new("umount").arg(&self.folder), PATIENCE);
        assert!(output.status.success(), "{}", common::said(&output));
        self.mount(mode).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: after a failure somebody may still have a file open in it.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).stderr(Stdio::null()).status();
    }
}

/// Stands ready with its hand at the switch, so that the cut comes when it is asked for.
struct Cutter {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Cutter {
    /// A system call that the standard library has not, in a language that every Debian has: the package itself is to
    /// stay without unsafe code. 0x8004587d is `EXT4_IOC_SHUTDOWN`, and 2 means that the log is not flushed.
    const SWITCH: &str = r#"
        open(my $volume, "<", $ARGV[0]) or die "$ARGV[0]: $!";
        my $how = pack("L", 2);
        $| = 1;
        print "ready\n";
        defined(<STDIN>) or exit;
        ioctl($volume, 0x8004587d, $how) or die "EXT4_IOC_SHUTDOWN: $!";
        print "dark\n";
    "#;

    fn aim(folder: &Path) -> Self {
        let mut command = Command::new("perl");
        command.arg("-e").arg(Self::SWITCH).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let says = BufReader::new(child.stdout.take().unwrap());
        let mut cutter = Self { child, says };
        cutter.hear("ready");
        cutter
    }

    fn hear(&mut self, word: &str) {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), word, "the power could not be cut");
    }

    fn cut(&mut self, run: &mut Run) {
        run.history.power_is_out.store(true, Ordering::Relaxed);
        self.child.stdin.take().unwrap().write_all(b"now\n").unwrap();
        self.hear("dark");
        run.crashes.push(Instant::now());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
