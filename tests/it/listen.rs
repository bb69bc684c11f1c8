//! The addresses a relay listens on, on a machine without IPv6: a filter of system calls refuses `socket(AF_INET6, …)` to the
//! daemon and to all it starts, as a kernel without IPv6 does. Any user may set one; Perl does it before it becomes the daemon.
//!
//! Skipped with a message where the kernel has no such filters, or Perl knows no system calls.

use std::path::Path;
use std::process::Command;

use crate::common::{Client, Daemon, PATIENCE, Scratch, Sink, causeway, out, relay, run, said};

/// Sets the filter (seccomp(2)), then becomes what its arguments say. Exit status 77: it cannot.
const WITHOUT_IPV6: &str = r#"
use strict; use warnings; use POSIX ();
my %calls = (x86_64 => [41, 157], aarch64 => [198, 167]);
my $machine = (POSIX::uname())[4];
my ($socket, $prctl) = @{ $calls{$machine} or do { warn "$machine: unknown\n"; exit 77 } };
# Of socket(2) the first argument is looked at; AF_INET6 is 10, EAFNOSUPPORT 97.
my $filter = pack('(SCCL)6', 0x20, 0, 0, 0, 0x15, 0, 3, $socket, 0x20, 0, 0, 16, 0x15, 0, 1, 10,
    0x06, 0, 0, 0x00050000 | 97, 0x06, 0, 0, 0x7fff0000);
my $program = pack('S x6 P', 6, $filter);
for my $call ([38, 1, 0], [22, 2, $program]) {
    next if syscall($prctl, @$call, 0, 0) == 0;
    warn "prctl: $!\n";
    exit 77;
}
exec @ARGV or die "$!";
"#;

/// `command` on a machine without IPv6.
fn without_ipv6(command: &Command) -> Command {
    let mut perl = Command::new("perl");
    perl.args(["-e", WITHOUT_IPV6]).arg(command.get_program()).args(command.get_args());
    perl
}

fn can_filter() -> bool {
    let output = run(&mut without_ipv6(&Command::new("true")), PATIENCE);
    if !output.status.success() {
        eprintln!("skipped: system calls cannot be filtered here: {}", said(&output));
    }
    output.status.success()
}

fn of(file: &Path, what: &str) -> Command {
    let mut command = causeway();
    command.arg("-c").arg(file).arg(what);
    command
}

fn config(listen: &str, sink: &Sink) -> String {
    let receive =
        format!("[[receive_connector]]\nname = \"in\"\nlisten = [{listen}]\norigin = \"internet\"\ntls = \"off\"\n");
    let admin = "[admin]\nlisten = \"[::1]:0\"\ntoken_file = \"admin\"\n";
    relay(&format!("{admin}\n{receive}\n{}", out(sink.address)))
}

/// What `init` writes: IPv4 is served, and the log says once what is not.
#[test]
fn a_machine_without_ipv6_serves_ipv4() {
    if !can_filter() {
        return;
    }
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let text = config("\"127.0.0.1:0\", \"[::]:0\"", &sink);
    let file = scratch.write("causeway.toml", &text);
    let checked = run(&mut without_ipv6(&of(&file, "check")), PATIENCE);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
    let mut daemon = Daemon::of(without_ipv6(&of(&file, "run")));
    daemon.wait_for_log("causeway is up");
    let told = "cannot listen on [::]:0";
    daemon.logs_times(told, 1);
    daemon.logs_times("there is no admin interface until", 1);
    assert!(daemon.has_logged("this machine has no IPv6"), "{}", daemon.log_text());
    let send = |daemon: &Daemon| {
        let content = b"Subject: x\r\n\r\nx\r\n";
        let reply = Client::hello(daemon.address()).deliver("erin@fabrikam.com", &["julie@contoso.com"], content);
        assert!(reply.unwrap().starts_with("250"));
    };
    send(&daemon);
    sink.wait_for(1);

    daemon.hang_up();
    daemon.wait_for_log("the new configuration is in force");
    daemon.logs_times(told, 1);
    send(&daemon);
    sink.wait_for(2);
    // Nothing would be left to listen on: refused, and the old configuration stays.
    scratch.write("causeway.toml", config("\"[::]:0\"", &sink));
    daemon.hang_up();
    daemon.wait_for_log("the old configuration stays");
    send(&daemon);
    sink.wait_for(3);
    assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log_text());
}

/// Nothing to listen on ends the start, and so does an address that may be a slip.
#[test]
fn no_listener_at_all_ends_the_start() {
    if !can_filter() {
        return;
    }
    let (scratch, sink) = (Scratch::new(), Sink::start());
    for (listen, words) in [
        ("\"[::]:0\"", "cannot listen on [::]:0"),
        ("\"127.0.0.1:0\", \"[2001:db8::1]:0\"", "cannot listen on [2001:db8::1]:0"),
        ("\"127.0.0.1:0\", \"192.0.2.1:0\"", "cannot listen on 192.0.2.1:0"),
    ] {
        let file = scratch.write("causeway.toml", config(listen, &sink));
        let output = run(&mut without_ipv6(&of(&file, "run")), PATIENCE);
        assert_eq!(output.status.code(), Some(1), "{listen}: {}", said(&output));
        assert!(said(&output).contains(words), "{listen}: {}", said(&output));
    }
}
