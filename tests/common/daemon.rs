//! The daemon as a child process: started on a configuration, watched through its log, ended in every way there is.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, causeway, wait_until};

/// A running daemon. Killed when dropped.
pub struct Daemon {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Writes `config` to `causeway.toml` in `folder` and starts the daemon on it; returns when it is up. Several
    /// doors need several addresses: `127.0.0.1:0`, `127.0.0.2:0`, …
    pub fn spawn(folder: &Path, config: &str) -> Self {
        Self::spawn_with(folder, config, &[])
    }

    /// The same, with these environment variables.
    pub fn spawn_with(folder: &Path, config: &str, environment: &[(&str, &str)]) -> Self {
        let mut daemon = Self::launch(folder, config, environment);
        let end = Instant::now() + PATIENCE;
        while !daemon.has_logged("causeway is up") {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended with {ended:?}:\n{}", daemon.log_text());
            assert!(Instant::now() < end, "the daemon is not up:\n{}", daemon.log_text());
            std::thread::sleep(Duration::from_millis(2));
        }
        daemon
    }

    /// The same, but returns at once: it may be on its way to an early end.
    pub fn launch(folder: &Path, config: &str, environment: &[(&str, &str)]) -> Self {
        let file = folder.join("causeway.toml");
        std::fs::write(&file, config).unwrap();
        let mut command = causeway();
        command.arg("-c").arg(&file).arg("run").envs(environment.iter().copied());
        Self::of(command)
    }

    /// What `command` becomes.
    pub fn of(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, log, reader: Some(reader) }
    }

    /// Where the door with this IP address listens, as the log says.
    pub fn door(&self, ip: &str) -> SocketAddr {
        let ip: IpAddr = ip.parse().unwrap();
        self.doors()
            .into_iter()
            .rfind(|address| address.ip() == ip)
            .unwrap_or_else(|| panic!("no door at {ip}:\n{}", self.log_text()))
    }

    /// The door at 127.0.0.1.
    pub fn address(&self) -> SocketAddr {
        self.door("127.0.0.1")
    }

    fn doors(&self) -> Vec<SocketAddr> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|line| line["message"] == "listening")
            .filter_map(|line| line["address"].as_str()?.parse().ok())
            .collect()
    }

    /// Everything it logged.
    pub fn log_text(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn has_logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// How many lines of the log contain `text`.
    pub fn times_logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// Waits until the log contains `text` so many times, and panics if it does more often. What a client was answered may be
    /// heard before the line of the log that goes with it is read.
    pub fn logs_times(&self, text: &str, times: usize) {
        wait_until(&format!("the log says {text:?} {times} times"), PATIENCE, || self.times_logged(text) >= times);
        assert_eq!(self.times_logged(text), times, "{text:?}:\n{}", self.log_text());
    }

    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("the log says {text:?}:\n{}", self.log_text()), PATIENCE, || self.has_logged(text));
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// kill -9, as good as a crash.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(PATIENCE)
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.join();
                return status;
            }
            assert!(Instant::now() < end, "the daemon did not end within {limit:?}:\n{}", self.log_text());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log.lock().unwrap();
            eprintln!("the daemon's last lines:\n{}", log[log.len().saturating_sub(60)..].join("\n"));
        }
    }
}
