//! Certificates that prove nothing to anybody, and clients that rustls turns away: what is possible with them, and what
//! the log says where nothing is. The other side is OpenSSL.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use causeway::tls::{Acceptor, Connector, Demand, Identity, Names, Roots, Unmet};
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::common::{Client, Daemon, IN, PATIENCE, Scratch, Sink, out, relay, run, said, wait_until};

const HOST: &str = "mail.contoso.com";

/// One certificate: its name, how its key is made, and what stands in its extensions (nothing: it is of version 1).
const KINDS: [(&str, &[&str], &str); 5] = [
    ("ordinary", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "subjectAltName=DNS:mail.contoso.com\n"),
    ("v1", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], ""),
    ("small", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"], "subjectAltName=DNS:mail.contoso.com\n"),
    (
        "critical",
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        "subjectAltName=DNS:mail.contoso.com\n1.3.6.1.4.1.32473.1=critical,ASN1:NULL\n",
    ),
    ("pss", &["-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"], "subjectAltName=DNS:mail.contoso.com\n"),
];

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];

/// OpenSSL itself refuses weak keys and old suites otherwise.
const WEAK: &str = "DEFAULT@SECLEVEL=0";

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = run(Command::new("openssl").current_dir(folder).args(arguments), PATIENCE);
    assert!(output.status.success(), "openssl {arguments:?}: {}", said(&output));
}

/// An authority, and a certificate of each kind that it issued: `KIND.crt` and `KIND.key`.
fn issue_all(scratch: &Scratch) {
    let folder = scratch.path();
    let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "root.key", "-out", "root.crt"];
    openssl(folder, &[&request[..], &["-subj", "/CN=Root", "-days", "100"]].concat());
    for (number, (kind, key, extensions)) in KINDS.iter().enumerate() {
        let (key_file, crt, csr) = (format!("{kind}.key"), format!("{kind}.crt"), format!("{kind}.csr"));
        openssl(folder, &[&["genpkey", "-out", &key_file], *key].concat());
        let subject = format!("/CN={HOST}");
        openssl(folder, &["req", "-new", "-key", &key_file, "-subj", &subject, "-out", &csr]);
        let serial = (number + 1).to_string();
        let sign = ["x509", "-req", "-in", &csr, "-CA", "root.crt", "-CAkey", "root.key", "-set_serial", &serial];
        let mut sign = [&sign[..], &["-days", "100", "-out", &crt]].concat();
        scratch.write("extensions", extensions);
        if !extensions.is_empty() {
            sign.extend(["-extfile", "extensions"]);
        }
        openssl(folder, &sign);
        // The relay refuses keys that everybody can read.
        scratch.write(&key_file, std::fs::read(scratch.file(&key_file)).unwrap());
    }
    let text =
        run(Command::new("openssl").current_dir(folder).args(["x509", "-in", "v1.crt", "-noout", "-text"]), PATIENCE);
    assert!(said(&text).contains("Version: 1"), "{}", said(&text));
}

/// A process that is gone afterwards.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `openssl s_server` on a port that the system chose.
fn server(scratch: &Scratch, kind: &str, version: &str) -> (Running, SocketAddr) {
    let (crt, key) = (format!("{kind}.crt"), format!("{kind}.key"));
    let mut child = Command::new("openssl")
        .current_dir(scratch.path())
        .args(["s_server", "-accept", "127.0.0.1:0", "-cert", &crt, "-key", &key, version, "-cipher", WEAK])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let running = Running(child);
    let place = loop {
        let line = lines.next().expect("it says where it listens").unwrap();
        if let Some(place) = line.strip_prefix("ACCEPT ") {
            break place.parse().unwrap_or_else(|_| panic!("{line}"));
        }
    };
    // It is to be able to say more.
    std::thread::spawn(move || lines.for_each(drop));
    (running, place)
}

fn client(scratch: &Scratch, to: SocketAddr, arguments: &[&str]) -> Running {
    let to = to.to_string();
    let child = Command::new("openssl")
        .current_dir(scratch.path())
        .args([&["s_client", "-connect", &to, "-quiet"], arguments].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Running(child)
}

fn demands(scratch: &Scratch) -> (Roots, Names) {
    (Roots::load(&scratch.file("root.crt")).unwrap(), Names::new(vec![HOST.to_owned()]).unwrap())
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// `encrypt` and `opportunistic` are TLS with any certificate; `domain` takes none of these.
#[tokio::test]
async fn any_certificate_is_any_certificate() {
    let scratch = Scratch::new();
    issue_all(&scratch);
    let (roots, names) = demands(&scratch);
    let connector = Connector::new(None);
    for (kind, ..) in KINDS {
        for version in VERSIONS {
            let what = format!("{kind} {version}");
            let (_running, place) = server(&scratch, kind, version);
            // Of the schemes for such keys TLS 1.2 in rustls knows none.
            let possible = (kind, version) != ("pss", "-tls1_2");
            for (demand, good) in [
                (Demand::Encryption, possible),
                (Demand::Nothing, possible),
                (Demand::Certificate(roots.clone()), kind == "ordinary"),
                (Demand::Domain(roots.clone(), names.clone()), kind == "ordinary"),
            ] {
                let stream = TcpStream::connect(place).await.unwrap();
                let result = connector.connect(stream, HOST, &demand, deadline()).await;
                assert_eq!(result.is_ok(), good, "{what}, demanded {demand}: {result:?}");
                match result {
                    Err(Unmet::Chain { .. }) => assert!(possible, "{what}"),
                    Err(other) => assert!(!possible, "{what}: {other}"),
                    Ok((stream, _)) => assert!(stream.is_tls()),
                }
            }
        }
    }
}

/// A client's certificate never ends the handshake. It proves nothing if it is one of these.
#[tokio::test]
async fn a_claim_is_lost_and_not_the_handshake() {
    let scratch = Scratch::new();
    issue_all(&scratch);
    let (roots, names) = demands(&scratch);
    let identity = Identity::load(&scratch.file("ordinary.crt"), &scratch.file("ordinary.key")).unwrap();
    let acceptor = Acceptor::new(&identity, true);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    for (kind, ..) in KINDS {
        for version in VERSIONS {
            let what = format!("{kind} {version}");
            let (crt, key) = (format!("{kind}.crt"), format!("{kind}.key"));
            // A name that is none is ignored, also where the handshake's octets are signed.
            for name in [HOST, "-bad-.lab"] {
                let arguments = ["-cert", &crt, "-key", &key, version, "-cipher", WEAK, "-servername", name];
                let _running = client(&scratch, address, &arguments);
                let (stream, _) = listener.accept().await.unwrap();
                let accepted =
                    acceptor.accept(stream, deadline()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(accepted.sni.as_deref(), Some(HOST).filter(|host| *host == name), "{what}");
                let Some(presented) = accepted.client else {
                    assert_eq!((kind, version), ("pss", "-tls1_2"), "it shows its certificate");
                    continue;
                };
                let verdict = presented.judge(&roots, &names, Timestamp::now());
                assert_eq!(verdict.is_ok(), kind == "ordinary", "{what}: {verdict:?}");
                assert!(matches!(verdict, Ok(_) | Err(Unmet::Chain { .. })), "{what}: {verdict:?}");
            }
        }
    }
}

/// Our own: what cannot be used is refused in words.
#[test]
fn a_key_of_type_id_rsassa_pss_is_not_ours() {
    let scratch = Scratch::new();
    issue_all(&scratch);
    let load =
        |kind: &str| Identity::load(&scratch.file(&format!("{kind}.crt")), &scratch.file(&format!("{kind}.key")));
    assert!(load("ordinary").is_ok());
    let why = load("pss").err().unwrap();
    assert!(why.contains("of type id-RSASSA-PSS") && why.contains("take an ECDSA key"), "{why}");
}

/// As `init` writes it: the partner's connector shares its port with everybody's. A device with an old certificate sends
/// its mail, and those that cannot are named in the log, with what would help.
#[test]
fn the_log_says_who_failed_and_why() {
    let scratch = Scratch::new();
    issue_all(&scratch);
    let sink = Sink::start();
    let certificate = "certificate = \"ordinary.crt\"\nkey = \"ordinary.key\"\n";
    let partner = IN.replace("\"in\"", "\"partner\"").replace("\"internet\"", "\"partner\"");
    let proof = format!("tls_domain = [\"{HOST}\"]\nclient_ca_file = \"root.crt\"\n");
    let text = relay(&format!("{IN}{certificate}\n{partner}{certificate}{proof}\n{}", out(sink.address)));
    let daemon = Daemon::spawn(scratch.path(), &text);
    let smtp = ["-starttls", "smtp", "-ign_eof"];
    let old = ["-cert", "v1.crt", "-key", "v1.key", "-servername", "-bad-.lab", "-cipher", WEAK];
    let mut device = client(&scratch, daemon.address(), &[&smtp[..], &old].concat());
    let mut stdin = device.0.stdin.take().unwrap();
    let mail = "EHLO device\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<julie@contoso.com>\r\nDATA\r\n";
    stdin.write_all(mail.as_bytes()).unwrap();
    let mut replies = BufReader::new(device.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("354 ") {
        line.clear();
        assert!(replies.read_line(&mut line).unwrap() > 0, "{}", daemon.log_text());
    }
    stdin.write_all(b"Subject: x\r\n\r\nHello\r\n.\r\nQUIT\r\n").unwrap();
    sink.wait_for(1);
    let mut rest = String::new();
    replies.read_to_string(&mut rest).unwrap();
    // It might have been the partner: why it was not.
    daemon.wait_for_log("not an X.509 version 3 certificate");

    let failing: [(&str, &[&str], &[&str]); 3] = [
        (
            "Windows Server 2012 R2",
            &[
                "-tls1_2",
                "-cipher",
                "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-SHA384:AES256-GCM-SHA384@SECLEVEL=0",
            ],
            &[
                "no cipher suite in common",
                "TLS_RSA_WITH_AES_256_GCM_SHA384",
                "with one that has an ECDSA key this client",
            ],
        ),
        (
            "old suites only",
            &["-tls1_2", "-cipher", "AES256-SHA256@SECLEVEL=0"],
            &["the client offers TLS_RSA_WITH_AES_256_CBC_SHA256", "we know those with ECDHE"],
        ),
        ("TLS 1.1", &["-tls1_1", "-cipher", WEAK], &["no TLS version in common"]),
    ];
    for (number, (what, arguments, words)) in failing.into_iter().enumerate() {
        let _device = client(&scratch, daemon.address(), &[&smtp[..], arguments].concat());
        wait_until(what, PATIENCE, || daemon.times_logged("the TLS handshake failed") > number);
        let log = daemon.log_text();
        let line = log.lines().rfind(|line| line.contains("the TLS handshake failed")).unwrap();
        for word in [words, &["INFO", "127.0.0.1", "\"connector\":\"in\""]].concat() {
            assert!(line.contains(word), "{what}: {word}: {line}");
        }
    }
    // A flood is counted, and nobody else is kept from the port.
    for _ in 0..20 {
        let mut client = Client::connect(daemon.address());
        client.say("EHLO x");
        client.say("STARTTLS");
        client.send(b"plain text").unwrap();
    }
    let reply =
        Client::hello(daemon.address()).deliver("a@b.example", &["julie@contoso.com"], b"Subject: x\r\n\r\nHello\r\n");
    assert!(reply.unwrap().starts_with("250"));
    daemon.logs_times("the TLS handshake failed", 3);
}
