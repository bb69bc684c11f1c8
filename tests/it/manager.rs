//! The daemon under a service manager: sockets that are bound for it, and what it says of itself. Perl plays systemd's
//! part, because a socket can only be handed down by whoever becomes the daemon.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use crate::common::{Client, Daemon, PATIENCE, Scratch, Sink, relay, wait_until};

/// Binds a port, writes it into the configuration, and becomes the daemon with that socket as descriptor 3.
const SYSTEMD: &str = r#"
use strict; use warnings; use IO::Socket::INET; use POSIX ();
my ($template, $file, @command) = @ARGV;
my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 16, Proto => 'tcp') or die "$!";
open(my $in, '<', $template) or die "$!"; local $/; my $text = <$in>; close $in;
my $port = $socket->sockport; $text =~ s/PORT/$port/g;
open(my $out, '>', $file) or die "$!"; print $out $text; close $out;
POSIX::dup2(fileno($socket), 3) unless fileno($socket) == 3;
$^F = 10; require Fcntl; open(my $three, '<&=', 3) or die "$!"; fcntl($three, Fcntl::F_SETFD(), 0) or die "$!";
$ENV{LISTEN_PID} = $$; $ENV{LISTEN_FDS} = 1;
exec @command or die "$!";
"#;

fn config(listen: &str, sink: &Sink) -> String {
    relay(&format!(
        r#"postmaster = "postmaster@contoso.com"
[spool]
path = "spool"
min_free_space = "1MiB"
[[receive_connector]]
name = "in"
listen = ["{listen}"]
origin = "internet"
tls = "off"
[[send_connector]]
name = "out"
address_spaces = ["*"]
smart_hosts = ["{}"]
tls = "off"
"#,
        sink.address
    ))
}

fn managed(scratch: &Scratch, config: &str, notify: &str) -> Daemon {
    let template = scratch.write("template.toml", config);
    let file = scratch.file("causeway.toml");
    let mut command = Command::new("perl");
    command.args(["-e", SYSTEMD]).arg(template).arg(&file).arg(env!("CARGO_BIN_EXE_causeway"));
    command.arg("-c").arg(&file).arg("run").env("NOTIFY_SOCKET", notify);
    Daemon::of(command)
}

#[test]
fn a_socket_that_was_bound_for_it_is_used_and_its_state_is_told() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let path = scratch.file("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut buffer = [0; 4096];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    let mut daemon = managed(&scratch, &config("127.0.0.1:PORT", &sink), path.to_str().unwrap());
    let ready = told();
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    let written = std::fs::read_to_string(scratch.file("causeway.toml")).unwrap();
    daemon.wait_for_log("\"listening\"");
    let address = daemon.address();
    assert!(written.contains(&address.to_string()), "{address} is the port that was passed in:\n{written}");
    let reply = Client::hello(address).deliver("erin@fabrikam.com", &["julie@contoso.com"], b"Subject: x\r\n\r\nx\r\n");
    assert!(reply.unwrap().starts_with("250"));
    sink.wait_for(1);

    daemon.hang_up();
    assert!(told().contains("STATUS=reading the configuration again"));
    assert!(told().contains("READY=1"));
    assert_eq!(daemon.terminate().code(), Some(0));
    let stopping = told();
    assert!(stopping.lines().any(|line| line == "STOPPING=1"), "{stopping}");
}

/// The port listens before the daemon exists: a client that connected then is greeted, and a SIGHUP at that time is obeyed.
#[test]
fn a_signal_before_it_is_ready_is_obeyed() {
    for _ in 0..3 {
        let (scratch, sink) = (Scratch::new(), Sink::start());
        scratch.issue(&scratch.authority(), "relay", &["mail.contoso.com"]);
        // The certificate is a pipe: who reads the configuration waits there until it is fed, once.
        let (whole, pipe) = (scratch.file("whole.crt"), scratch.file("pipe"));
        std::fs::rename(scratch.file("relay.crt"), &whole).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::hard_link(&pipe, scratch.file("relay.crt")).unwrap();
        let offer = "tls = \"offer\"\ncertificate = \"relay.crt\"\nkey = \"relay.key\"";
        let text = config("127.0.0.1:PORT", &sink).replacen("tls = \"off\"", offer, 1);
        let mut daemon = managed(&scratch, &text, "");
        let file = scratch.file("causeway.toml");
        let address = || {
            let text = std::fs::read_to_string(&file).ok()?;
            text.lines().find_map(|line| line.strip_prefix("listen = [\"")?.strip_suffix("\"]")?.parse().ok())
        };
        wait_until("the port is bound", PATIENCE, || address().is_some());
        let mut client = std::net::TcpStream::connect::<std::net::SocketAddr>(address().unwrap()).unwrap();
        wait_until("it holds signals", PATIENCE, || super::daemon::holds_signals(daemon.pid()));
        daemon.hang_up();
        let mut feed = None;
        wait_until("it reads the certificate", PATIENCE, || {
            // Without a reader this is an error.
            feed = std::fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe).ok();
            feed.is_some()
        });
        let pem = std::fs::read(&whole).unwrap();
        std::fs::rename(&whole, scratch.file("relay.crt")).unwrap();
        feed.unwrap().write_all(&pem).unwrap();
        let mut greeting = [0; 4];
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        std::io::Read::read_exact(&mut client, &mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ");
        daemon.wait_for_log("the new configuration is in force");
        assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log_text());
    }
}

/// Who connects to a socket that nobody serves waits for ever, and nobody sees why.
#[test]
fn a_socket_that_no_connector_names_is_refused_at_start() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let mut daemon = managed(&scratch, &config("127.0.0.2:0", &sink), "");
    let status = daemon.wait(PATIENCE);
    assert!(!status.success(), "{}", daemon.log_text());
    assert!(daemon.has_logged("the service manager passes a socket for it"), "{}", daemon.log_text());
}
