//! Postfix as a real peer, on both sides of the relay: as the next hop that demands our certificate, as the sender that
//! proves itself by its own, and with its load tools for volume.
//!
//! Each Postfix is an instance of its own, in a scratch folder, on a port of its own; the machine's is not touched.
//! Postfix needs root and its user `postfix`: without them the tests say so and pass, as there is nothing to talk to.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{
    Client, Daemon, PATIENCE, Scratch, Sink, SinkPlan, awkward_message, behind_trace, relay, reserved_address, same,
    wait_until,
};
use nix::unistd::{Group, Uid, User};

const PROGRAMS: &str = "/usr/sbin";
const DAEMONS: &str = "/usr/lib/postfix/sbin";

/// What the relay sends with: under this name it is known to Postfix.
const RELAY: &str = "mail.contoso.com";

/// A Postfix of our own; ended when dropped, with all its processes.
struct Postfix {
    master: Child,
    address: SocketAddr,
    folder: PathBuf,
}

/// Postfix's accounts, or why there is no Postfix here.
fn accounts() -> Result<(User, Group), String> {
    if !Uid::effective().is_root() {
        return Err("Postfix needs root".into());
    }
    if !Path::new(DAEMONS).join("master").exists() {
        // scripts/test installs it; whoever is root and has run that has it.
        panic!("Postfix is not installed: run scripts/test");
    }
    let user = User::from_name("postfix").unwrap().ok_or("there is no user postfix")?;
    let group = Group::from_name("postdrop").unwrap().ok_or("there is no group postdrop")?;
    Ok((user, group))
}

impl Postfix {
    /// An instance in `name` under the scratch folder, with these settings beside those it needs to run at all.
    fn start(scratch: &Scratch, name: &str, settings: &str) -> Option<Self> {
        let (user, group) = match accounts() {
            Ok(accounts) => accounts,
            Err(why) => {
                eprintln!("skipped: {why}");
                return None;
            }
        };
        let folder = scratch.file(name);
        let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        open(scratch.path());
        let make = |below: &str, mode: u32, owner: bool, drop: bool| {
            let path = folder.join(below);
            std::fs::create_dir_all(&path).unwrap();
            chown(&path, owner.then_some(user.uid.as_raw()), drop.then_some(group.gid.as_raw())).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        make("", 0o755, false, false);
        make("conf", 0o755, false, false);
        make("spool", 0o755, false, false);
        make("data", 0o700, true, false);
        make("log", 0o755, false, false);
        make("mail", 0o755, true, false);
        for queue in [
            "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved",
            "trace",
        ] {
            make(&format!("spool/{queue}"), 0o700, true, false);
        }
        make("spool/pid", 0o755, false, false);
        make("spool/maildrop", 0o1730, true, true);
        make("spool/public", 0o2710, true, true);

        let address = reserved_address();
        let at = folder.display();
        let main = format!(
            r"compatibility_level = 3.6
queue_directory = {at}/spool
data_directory = {at}/data
daemon_directory = {DAEMONS}
command_directory = {PROGRAMS}
shlib_directory = no
meta_directory = {at}/conf
maillog_file = {at}/log/maillog
maillog_file_prefixes = {at}
import_environment = MAIL_CONFIG TZ LANG=C
export_environment = MAIL_CONFIG TZ LANG=C
mail_owner = postfix
setgid_group = postdrop
myhostname = {name}.example
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
local_header_rewrite_clients =
always_add_missing_headers = no
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
in_flow_delay = 0
{settings}
"
        );
        scratch.write(&format!("{name}/conf/main.cf"), main);
        scratch.write(&format!("{name}/conf/dynamicmaps.cf"), "");
        scratch.write(
            &format!("{name}/conf/master.cf"),
            format!(
                "{address} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"
            ),
        );
        let master = Command::new(format!("{DAEMONS}/master"))
            .arg("-c")
            .arg(folder.join("conf"))
            .arg("-d")
            .env("MAIL_CONFIG", folder.join("conf"))
            .current_dir(&folder)
            // It ends its children by its process group.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let postfix = Self { master, address, folder };
        wait_until(&format!("Postfix {name} greets; its log:\n{}", postfix.log()), PATIENCE, || {
            Client::greeted(address).is_ok_and(|(_, greeting)| greeting.starts_with("220"))
        });
        Some(postfix)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log/maillog")).unwrap_or_default()
    }

    /// What lies in the mailbox, with the line ends of the wire.
    fn mailbox(&self) -> Vec<Vec<u8>> {
        let Ok(files) = std::fs::read_dir(self.folder.join("mail/inbox/new")) else { return Vec::new() };
        files
            .map(|file| {
                let content = std::fs::read(file.unwrap().path()).unwrap();
                let mut wire = Vec::with_capacity(content.len() + content.len() / 32);
                for byte in content {
                    if byte == b'\n' {
                        wire.push(b'\r');
                    }
                    wire.push(byte);
                }
                wire
            })
            .collect()
    }

    fn wait_for_mail(&self, count: usize) -> Vec<Vec<u8>> {
        let end = std::time::Instant::now() + PATIENCE;
        while self.mailbox().len() < count {
            assert!(std::time::Instant::now() < end, "{count} messages did not arrive; Postfix says:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.mailbox()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        // The master takes its children along when it is asked to end.
        if let Ok(pid) = i32::try_from(self.master.id()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while matches!(self.master.try_wait(), Ok(None)) && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.master.kill();
        let _ = self.master.wait();
        if std::thread::panicking() {
            eprintln!("Postfix says:\n{}", self.log());
        }
    }
}

/// The relay, in front of `hop`.
fn config(receive: &str, hop: SocketAddr, send: &str) -> String {
    relay(&format!(
        r#"hostname = "{RELAY}"
postmaster = "postmaster@contoso.com"

[[receive_connector]]
name = "in"
listen = ["127.0.0.1:0"]
max_connections_per_ip = 1000
{receive}

[[send_connector]]
name = "out"
address_spaces = ["*"]
smart_hosts = ["{hop}"]
{send}
"#
    ))
}

/// Delivers all mail for contoso.com into one maildir.
fn mailbox(scratch: &Scratch, name: &str) -> String {
    let uid = User::from_name("postfix").ok().flatten().map_or(0, |user| user.uid.as_raw());
    format!(
        "virtual_mailbox_domains = contoso.com\nvirtual_mailbox_base = {}/mail\nvirtual_mailbox_maps = static:inbox/\n\
         virtual_minimum_uid = 1\nvirtual_uid_maps = static:{uid}\nvirtual_gid_maps = static:{uid}\n",
        scratch.file(name).display()
    )
}

/// Postfix's own certificate, and the authority it believes.
fn tls(scratch: &Scratch, side: &str, file: &str) -> String {
    let at = scratch.path().display();
    format!(
        "{side}_tls_cert_file = {at}/{file}.crt\n{side}_tls_key_file = {at}/{file}.key\n\
         {side}_tls_CAfile = {at}/ca.pem\n{side}_tls_loglevel = 1\n"
    )
}

/// Postfix as the next hop: TLS only, and only for who shows a certificate of our authority.
#[test]
fn postfix_takes_what_the_relay_proves() {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    scratch.issue(&authority, "relay", &[RELAY]);
    scratch.issue(&authority, "hop", &["hop.example"]);
    let settings = format!(
        "{}{}smtpd_tls_security_level = encrypt\nsmtpd_tls_req_ccert = yes\nsmtpd_tls_received_header = yes\n\
         smtpd_relay_restrictions = permit_tls_all_clientcerts, reject\n",
        mailbox(&scratch, "hop"),
        tls(&scratch, "smtpd", "hop")
    );
    let Some(postfix) = Postfix::start(&scratch, "hop", &settings) else { return };
    let own = "certificate = \"relay.crt\"\nkey = \"relay.key\"";
    let send = format!("tls = \"domain\"\ntls_domain = [\"hop.example\"]\nca_file = \"ca.pem\"\n{own}");
    let daemon = Daemon::spawn(scratch.path(), &config("origin = \"internet\"\ntls = \"off\"", postfix.address, &send));
    let content = awkward_message("to-postfix");
    let mut client = Client::hello(daemon.address());
    let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com", "\"a b\"@contoso.com"], &content).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    // One transaction with two recipients becomes two files.
    let files = postfix.wait_for_mail(2);
    for file in &files {
        same(behind_trace(file, "From: Erin"), &content);
        let text = String::from_utf8_lossy(file);
        let trace = text[..text.find("From: Erin").unwrap()].replace("\r\n\t", " ").replace("\r\n ", " ");
        assert!(trace.contains("Return-Path: <erin@fabrikam.com>"), "{trace}");
        assert!(trace.contains("Client CN \"mail.contoso.com\"") && trace.contains("(verified OK)"), "{trace}");
        assert!(trace.contains("using TLSv1.3"), "{trace}");
        assert_eq!(trace.matches("Received: ").count(), 2, "Postfix's and ours: {trace}");
    }

    // BDAT, where Postfix offers it, with a message of more than a mebibyte that lies in a file of its own.
    let mut big = awkward_message("big");
    for number in 0..40_000 {
        big.extend_from_slice(format!("{number}: .. a line of the big message ..\r\n.{number}\r\n").as_bytes());
    }
    let reply = client.deliver("", &["julie@contoso.com"], &big).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    let files = postfix.wait_for_mail(3);
    assert!(files.iter().any(|file| file.len() > 1 << 20 && behind_trace(file, "From: Erin") == big));
}

/// The relay does not show a certificate that Postfix would believe: Postfix takes nothing, and the message waits.
#[test]
fn postfix_refuses_a_relay_it_does_not_know_and_the_message_waits() {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    let foreign = causeway::tls::authority::Authority::new("Somebody else's CA");
    scratch.issue(&foreign, "relay", &[RELAY]);
    scratch.issue(&authority, "hop", &["hop.example"]);
    let settings = format!(
        "{}{}smtpd_tls_security_level = encrypt\nsmtpd_tls_ask_ccert = yes\n\
         smtpd_relay_restrictions = permit_tls_all_clientcerts, defer\nsmtpd_delay_reject = yes\n",
        mailbox(&scratch, "hop"),
        tls(&scratch, "smtpd", "hop")
    );
    let Some(postfix) = Postfix::start(&scratch, "hop", &settings) else { return };
    let own = "certificate = \"relay.crt\"\nkey = \"relay.key\"";
    let send = format!("tls = \"domain\"\ntls_domain = [\"hop.example\"]\nca_file = \"ca.pem\"\n{own}");
    let daemon = Daemon::spawn(scratch.path(), &config("origin = \"internet\"\ntls = \"off\"", postfix.address, &send));
    let content = awkward_message("waits");
    let reply = Client::hello(daemon.address()).deliver("erin@fabrikam.com", &["julie@contoso.com"], &content).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    daemon.wait_for_log("deferred");
    assert!(postfix.mailbox().is_empty());
    // The right certificate arrives; nobody needs to tell the daemon.
    scratch.issue(&authority, "relay", &[RELAY]);
    let files = postfix.wait_for_mail(1);
    same(behind_trace(&files[0], "From: Erin"), &content);
}

/// Postfix as the sender: it demands that we are who we should be, and shows a certificate that our connector demands.
#[test]
fn postfix_proves_itself_to_the_relay() {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    scratch.issue(&authority, "relay", &[RELAY]);
    scratch.issue(&authority, "sender", &["sender.example"]);
    scratch.issue(&authority, "stranger", &["stranger.example"]);
    let sink = Sink::start();
    let receive = "origin = \"partner\"\nrelay = true\ntls = \"require\"\ntls_domain = [\"sender.example\"]\n\
                   client_ca_file = \"ca.pem\"\ncertificate = \"relay.crt\"\nkey = \"relay.key\"";
    let daemon = Daemon::spawn(scratch.path(), &config(receive, sink.address, "tls = \"off\""));
    let settings = |certificate: &str| {
        format!(
            "{}relayhost = [127.0.0.1]:{}\nmynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
             smtp_tls_security_level = secure\nsmtp_tls_secure_cert_match = {RELAY}\n",
            tls(&scratch, "smtp", certificate),
            daemon.address().port()
        )
    };
    let Some(postfix) = Postfix::start(&scratch, "sender", &settings("sender")) else { return };
    let content = awkward_message("from-postfix");
    let mut client = Client::hello(postfix.address);
    let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com", "eve@elsewhere.example"], &content).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    wait_until("both have it", PATIENCE, || sink.look(|all| all.iter().map(|one| one.to.len()).sum::<usize>() >= 2));
    let mut to: Vec<String> = Vec::new();
    for arrival in sink.arrivals() {
        let text = arrival.text();
        let trace = text[..text.find("From: Erin").unwrap()].replace("\r\n\t", " ").replace("\r\n ", " ");
        assert!(trace.starts_with("Received: from sender.example"), "{trace}");
        assert!(trace.contains("with ESMTPS"), "{trace}");
        assert_eq!(trace.matches("Received: ").count(), 2, "ours and Postfix's: {trace}");
        // Postfix folds lines of more than 998 octets; ours has no more.
        same(behind_trace(&arrival.content, "From: Erin"), &content);
        to.extend(arrival.to);
    }
    to.sort_unstable();
    assert_eq!(to, ["eve@elsewhere.example", "julie@contoso.com"]);
    wait_until("Postfix logs what it verified", PATIENCE, || {
        postfix.log().contains("Verified TLS connection established to")
    });

    // Another certificate, and the relay says what it demanded.
    let before = sink.count();
    let stranger = Postfix::start(&scratch, "stranger", &settings("stranger")).unwrap();
    let reply = Client::hello(stranger.address).deliver("", &["julie@contoso.com"], &content).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    wait_until("Postfix hears the refusal", PATIENCE, || stranger.log().contains("550 5.7.1"));
    wait_until("the relay names what it demanded", PATIENCE, || stranger.log().contains("sender.example"));
    assert_eq!(sink.count(), before);
}

/// smtp-source to the relay to a counting sink: every message once, whatever its size and however it is sent.
#[test]
fn thousands_from_smtp_source_arrive_once_each() {
    let source = Path::new(PROGRAMS).join("smtp-source");
    assert!(source.exists(), "smtp-source is missing: run scripts/test");
    let scratch = Scratch::new();
    let sink = Sink::with(SinkPlan { keep_content: false, ..SinkPlan::new() });
    let receive = "origin = \"on-premises\"\ntls = \"off\"";
    let mut daemon = Daemon::spawn(scratch.path(), &config(receive, sink.address, "tls = \"off\""));
    let mut expected = 0;
    let mut recipients = 0;
    for (count, size, per_message, once_connected) in
        [(1200, 500, 1, true), (600, 10_000, 3, true), (150, 100_000, 1, false), (50, 1_200_000, 2, true)]
    {
        let mut command = Command::new(&source);
        command.args(["-M", "client.example", "-f", "erin@fabrikam.com", "-t", "rcpt@contoso.com", "-s", "20"]);
        command.args(["-m", &count.to_string(), "-l", &size.to_string(), "-r", &per_message.to_string()]);
        if once_connected {
            command.arg("-d");
        }
        let output = crate::common::run(command.arg(daemon.address().to_string()), Duration::from_secs(120));
        assert!(output.status.success(), "{size}: {}", crate::common::said(&output));
        expected += count;
        recipients += count * per_message;
    }
    wait_until("all have arrived", Duration::from_secs(120), || sink.count() >= expected);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(daemon.log_text().contains("\"waiting\":0"), "{}", daemon.log_text());
    assert_eq!(sink.count(), expected, "each once");
    assert_eq!(sink.look(|all| all.iter().map(|one| one.to.len()).sum::<usize>()), recipients, "for each recipient");
}

/// smtp-sink as the next hop: pipelining and all, and its own count.
#[test]
fn smtp_sink_counts_what_the_relay_sends() {
    let sink = Path::new(PROGRAMS).join("smtp-sink");
    assert!(sink.exists(), "smtp-sink is missing: run scripts/test");
    let scratch = Scratch::new();
    let hop = reserved_address();
    let mut command = Command::new(sink);
    if Uid::effective().is_root() {
        command.args(["-u", "nobody"]);
    }
    command.args(["-c", "-m", "200"]).arg(hop.to_string()).arg("1000");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut child = Guard(child);
    let counted: Arc<Mutex<u64>> = Arc::default();
    let count = Arc::clone(&counted);
    let mut out = BufReader::new(child.0.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        // It writes its counters over and over, each time behind a carriage return.
        let mut line = Vec::new();
        while out.read_until(b'\r', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line);
            if let Some(number) =
                text.split("mesg=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            {
                *count.lock().unwrap() = number;
            }
            line.clear();
        }
    });
    wait_until("smtp-sink greets", PATIENCE, || Client::greeted(hop).is_ok());
    let receive = "origin = \"on-premises\"\ntls = \"off\"";
    let mut daemon = Daemon::spawn(scratch.path(), &config(receive, hop, "tls = \"off\""));
    let clients: Vec<_> = (0..10)
        .map(|number| {
            let address = daemon.address();
            std::thread::spawn(move || {
                let mut client = Client::hello(address);
                for message in 0..30 {
                    let content = awkward_message(&format!("{number}-{message}"));
                    let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com"], &content).unwrap();
                    assert!(reply.starts_with("250"), "{reply}");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    wait_until("smtp-sink has counted all", PATIENCE, || *counted.lock().unwrap() >= 300);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(daemon.log_text().contains("\"waiting\":0"), "{}", daemon.log_text());
    drop(child);
    reader.join().unwrap();
    assert_eq!(*counted.lock().unwrap(), 300);
}

/// A child that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
