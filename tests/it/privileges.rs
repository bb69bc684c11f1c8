//! The change of user, for real: started by root, it binds, becomes somebody else for good, and works.
//!
//! Needs root and a user to become; without either it says so and tests nothing.

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::common::{Client, Daemon, PATIENCE, Scratch, Sink, relay};
use nix::unistd::{User, chown, geteuid};

const MESSAGE: &[u8] = b"From: erin@fabrikam.com\r\nSubject: one\r\n\r\nhello\r\n";

/// Whom root can become here.
fn somebody() -> Option<User> {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return None;
    }
    let found = ["nobody", "daemon", "mail"].into_iter().filter_map(|name| User::from_name(name).ok().flatten());
    let user = found.into_iter().find(|user| !user.uid.is_root());
    if user.is_none() {
        eprintln!("skipped: there is no user nobody, daemon or mail on this machine");
    }
    user
}

fn give(user: &User, path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    chown(path, Some(user.uid), Some(user.gid)).unwrap();
}

/// A folder that belongs to the user, with a certificate that it may read.
fn folder_of(user: &User) -> Scratch {
    let scratch = Scratch::new();
    give(user, scratch.path(), 0o700);
    scratch.issue(&scratch.authority(), "relay", &["mail.contoso.com"]);
    for file in ["relay.crt", "relay.key"] {
        give(user, &scratch.file(file), 0o600);
    }
    scratch
}

fn config(user: &User, listen: &str, sink: SocketAddr) -> String {
    relay(&format!(
        r#"user = "{}"

[spool]
path = "spool"
min_free_space = "1MiB"

[tracking]
path = "events"

[[receive_connector]]
name = "in"
listen = [{listen}]
origin = "internet"
tls = "offer"
certificate = "relay.crt"
key = "relay.key"

[[send_connector]]
name = "out"
address_spaces = ["*"]
smart_hosts = ["{sink}"]
tls = "off"
"#,
        user.name
    ))
}

/// The numbers behind a word of /proc/PID/status.
fn status(pid: u32, word: &str) -> Vec<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(':')).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

fn deliver(daemon: &Daemon) {
    let reply = Client::hello(daemon.address()).deliver("a@b.example", &["julie@contoso.com"], MESSAGE).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
}

#[test]
fn root_becomes_the_user_for_good() {
    let Some(user) = somebody() else { return };
    let (scratch, sink) = (folder_of(&user), Sink::start());
    let text = config(&user, "\"127.0.0.1:0\"", sink.address);
    let mut daemon = Daemon::spawn(scratch.path(), &text);
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    // Real, effective, saved and for files: there is no way back.
    assert_eq!(status(daemon.pid(), "Uid"), [&uid; 4].map(String::clone));
    assert_eq!(status(daemon.pid(), "Gid"), [&gid; 4].map(String::clone));
    let groups = status(daemon.pid(), "Groups");
    let name = std::ffi::CString::new(user.name.clone()).unwrap();
    let mut expected: Vec<String> =
        nix::unistd::getgrouplist(&name, user.gid).unwrap().into_iter().map(|group| group.to_string()).collect();
    expected.sort_by_key(|group| group.parse::<u32>().unwrap());
    assert_eq!(groups, expected, "its groups, and none of root's");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(daemon.pid(), set), ["0000000000000000"], "{set}");
    }
    // Threads have rights of their own: all of them changed.
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert!(line.split_whitespace().skip(1).all(|number| number == uid), "{line}");
    }
    deliver(&daemon);
    sink.wait_for(1);
    for made in ["spool", "spool/log", "spool/lock", "events"] {
        let found = std::fs::metadata(scratch.file(made)).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o077), (user.uid.as_raw(), 0), "{made} belongs to the user alone");
    }

    // Certificates are read again as that user, and a reload works.
    daemon.hang_up();
    daemon.wait_for_log("the new configuration is in force");
    deliver(&daemon);
    sink.wait_for(2);

    // A port that only root could bind is refused by name, and everything stays.
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first: u16 = first.ok().and_then(|first| first.trim().parse().ok()).unwrap_or(1024);
    let low = (1..first.min(1024)).rev().find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    match low {
        Some(port) => {
            let listen = format!("\"127.0.0.1:0\", \"127.0.0.1:{port}\"");
            scratch.write("causeway.toml", config(&user, &listen, sink.address));
            daemon.hang_up();
            daemon.wait_for_log(&format!("cannot listen on 127.0.0.1:{port}: Permission denied"));
            daemon.wait_for_log("restart it; the old configuration stays");
            deliver(&daemon);
            sink.wait_for(3);
        }
        None => eprintln!("not tested: every port may be bound by everybody here"),
    }
    assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log_text());
}

/// A port below 1024 is bound as root, before.
#[test]
fn a_port_below_1024_is_bound_before_the_change() {
    let Some(user) = somebody() else { return };
    let (scratch, sink) = (folder_of(&user), Sink::start());
    let free = (600..1024).rev().find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let Some(port) = free else { return eprintln!("skipped: no port below 1024 is free here") };
    let daemon = Daemon::spawn(scratch.path(), &config(&user, &format!("\"127.0.0.1:{port}\""), sink.address));
    assert_eq!(daemon.address().port(), port);
    assert_eq!(status(daemon.pid(), "Uid")[1], user.uid.to_string());
    deliver(&daemon);
    sink.wait_for(1);
}

/// What only root can read is found at the start, not at the first reload.
#[test]
fn files_that_the_user_cannot_read_are_found_at_the_start() {
    let Some(user) = somebody() else { return };
    for (file, word) in [("relay.key", "relay.key"), ("causeway.toml", "causeway.toml")] {
        let (scratch, sink) = (folder_of(&user), Sink::start());
        let text = config(&user, "\"127.0.0.1:0\"", sink.address);
        scratch.write("causeway.toml", &text);
        let root_only = scratch.file(file);
        std::fs::set_permissions(&root_only, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&root_only, Some(0.into()), Some(0.into())).unwrap();
        let mut daemon = Daemon::launch(scratch.path(), &text, &[]);
        let code = daemon.wait(PATIENCE).code();
        let log = daemon.log_text();
        assert_eq!(code, Some(2), "{file}: {log}");
        for part in [word, "Permission denied", &format!("as user \"{}\"", user.name)] {
            assert!(log.contains(part), "{file}: {part}: {log}");
        }
        assert!(!scratch.file("spool").exists(), "nothing was made before");
    }
}

/// A spool of root's is refused with what to do; mail would stay in it unseen.
#[test]
fn a_spool_of_another_user_is_refused() {
    let Some(user) = somebody() else { return };
    let (scratch, sink) = (folder_of(&user), Sink::start());
    std::fs::create_dir(scratch.file("spool")).unwrap();
    let mut daemon = Daemon::launch(scratch.path(), &config(&user, "\"127.0.0.1:0\"", sink.address), &[]);
    assert_eq!(daemon.wait(PATIENCE).code(), Some(1), "{}", daemon.log_text());
    let log = daemon.log_text();
    assert!(log.contains("it belongs to user 0") && log.contains("chown it"), "{log}");
    assert_eq!(sink.count(), 0);
}
