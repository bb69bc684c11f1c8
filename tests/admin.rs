//! The admin interface of the built daemon, over plain sockets.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;

use common::{Client, Daemon, PATIENCE, Scratch, Sink, causeway, run, said, wait_until};
use serde_json::{Value, json};

/// A relay that sends everything to `next`.
fn config(next: SocketAddr, admin: &str) -> String {
    format!(
        r#"hostname = "mail.contoso.com"
postmaster = "julie@contoso.com"
shutdown_grace = "10s"

[log]
format = "json"

[spool]
path = "spool"
min_free_space = "1MiB"
retry = ["1h"]

[tracking]
path = "tracking"

[[accepted_domain]]
name = "contoso.com"
type = "external-relay"

[[receive_connector]]
name = "in"
listen = ["127.0.0.1:0"]
origin = "internet"
tls = "off"
relay = true

[[send_connector]]
name = "out"
address_spaces = ["*"]
smart_hosts = ["{next}"]
tls = "off"

{admin}
"#
    )
}

const ADMIN: &str = "[admin]\nlisten = \"127.0.0.1:0\"\n";

/// A running relay with its admin interface.
struct World {
    scratch: Scratch,
    daemon: Daemon,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl World {
    fn new(next: SocketAddr) -> Self {
        let scratch = Scratch::new();
        let daemon = Daemon::spawn(scratch.path(), &config(next, ADMIN));
        Self { scratch, daemon }
    }

    /// Where the admin interface listens, as the log says.
    fn address(&self) -> SocketAddr {
        let log = self.daemon.log_text();
        let line = log.lines().rfind(|line| line.contains("the admin interface listens\"")).unwrap();
        serde_json::from_str::<Value>(line).unwrap()["address"].as_str().unwrap().parse().unwrap()
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.scratch.file("secrets/admin")).unwrap().trim().to_owned()
    }

    /// Sends a request as it stands and gives the answer.
    fn raw(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may be answered, and closed, before all of it was sent.
        let _ = stream.write_all(request.as_bytes());
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// With these fields beside Host.
    fn ask_with(&self, method: &str, path: &str, fields: &str, body: &str) -> Answer {
        let (host, length) = (self.address(), body.len());
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {length}\r\n") };
        self.raw(&format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}{length}\r\n{body}"))
    }

    fn get(&self, path: &str) -> Answer {
        self.ask_with("GET", path, &format!("Authorization: Bearer {}\r\n", self.token()), "")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        let fields = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", self.token());
        self.ask_with("POST", path, &fields, &body.to_string())
    }
}

/// The token is made at the first start, for nobody else; health needs none, everything else does.
#[test]
fn s160_every_route_asks_for_the_token_but_health() {
    let sink = Sink::start();
    let world = World::new(sink.address);
    let mode = std::fs::metadata(world.scratch.file("secrets/admin")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let document = world.get("/api/v1/openapi.json").json();
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let (method, path) = (method.to_uppercase(), path.replace("{id}", "000100000001"));
            let open = operation["security"] == json!([]);
            for (what, fields) in [
                ("no token", String::new()),
                ("a wrong one", format!("Authorization: Bearer {}\r\n", "0".repeat(64))),
                ("an empty one", "Authorization: Bearer \r\n".to_owned()),
                ("another scheme", format!("Authorization: Basic {}\r\n", world.token())),
                ("two", format!("Authorization: Bearer {0}\r\nAuthorization: Bearer {0}\r\n", world.token())),
            ] {
                let fields = format!("{fields}Content-Type: application/json\r\n");
                let answer = world.ask_with(&method, &path, &fields, "{}");
                let expected = if open { 200 } else { 401 };
                assert_eq!(answer.status, expected, "{method} {path} with {what}: {answer:?}");
                assert!(open || answer.json()["error"].is_string(), "{answer:?}");
                assert!(answer.head.contains("cache-control: no-store"), "{answer:?}");
                asked += 1;
            }
        }
    }
    assert!(asked >= 20, "{asked}");
    assert_eq!(world.ask_with("GET", "/nothing", "", "").status, 401, "a stranger does not learn what is not there");
    let answer = world.get("/nothing");
    assert_eq!((answer.status, answer.json()["error"].is_string()), (404, true), "{answer:?}");
    let answer = world.post("/healthz", &json!({}));
    assert_eq!((answer.status, answer.json()["error"].is_string()), (405, true), "{answer:?}");
    assert_eq!(world.get("/readyz").json(), json!({"status": "ready"}));
    let metrics = world.get("/metrics");
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4"), "{metrics:?}");
    for line in ["# TYPE causeway_ready gauge", "causeway_ready 1", "causeway_queue_deferred{connector=\"out\"} 0"] {
        assert!(metrics.body.lines().any(|found| found == line), "{line}: {}", metrics.body);
    }
    assert!(!world.daemon.log_text().contains(&world.token()), "S-166");
}

#[test]
fn s161_pages_of_other_sites_and_other_names_are_refused() {
    let sink = Sink::start();
    let world = World::new(sink.address);
    let token = format!("Authorization: Bearer {}\r\n", world.token());
    let own = format!("Origin: http://{}\r\n", world.address());
    for (fields, expected) in [
        ("", 200),
        (own.as_str(), 200),
        ("Origin: http://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        ("Sec-Fetch-Site: none\r\n", 200),
    ] {
        let answer = world.ask_with("GET", "/metrics", &format!("{token}{fields}"), "");
        assert_eq!(answer.status, expected, "{fields:?}: {answer:?}");
        assert!(!answer.head.contains("access-control-allow-origin"), "{answer:?}");
    }
    for (host, expected) in [
        ("Host: evil.example\r\n", 403),
        ("", 400),
        ("Host: localhost\r\nHost: evil.example\r\n", 400),
        ("Host: localhost:8025\r\n", 200),
    ] {
        let answer = world.raw(&format!("GET /healthz HTTP/1.1\r\n{host}\r\n"));
        assert_eq!(answer.status, expected, "{host:?}: {answer:?}");
    }
}

/// S-167: heads that are too long or too many, and bodies that lie about their length.
#[test]
fn s167_every_request_has_limits() {
    let sink = Sink::start();
    let world = World::new(sink.address);
    let many: String = (0..100).map(|number| format!("X-{number}: x\r\n")).collect();
    assert_eq!(world.ask_with("GET", "/healthz", &many, "").status, 431);
    let long = format!("X: {}\r\n", "x".repeat(64 << 10));
    assert_eq!(world.ask_with("GET", "/healthz", &long, "").status, 431);
    for request in [
        "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        assert_eq!(world.raw(request).status, 400, "{request:?}");
    }
    assert_eq!(world.get("/healthz").status, 200, "and it lives");
}

#[test]
fn where_it_may_not_listen_is_refused_by_name() {
    let sink = Sink::start();
    let scratch = Scratch::new();
    for (admin, status, expected) in [
        ("[admin]\nlisten = \"0.0.0.0:8025\"", 2, "expected a loopback address"),
        ("[admin]\nlisten = \"[::]:8025\"", 2, "expected a loopback address"),
        ("[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"open\"", 2, "others can read"),
        ("[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"short\"", 1, "at least 16 characters"),
    ] {
        scratch.write("open", "0123456789abcdef0123456789abcdef\n");
        std::fs::set_permissions(scratch.file("open"), std::fs::Permissions::from_mode(0o644)).unwrap();
        scratch.write("short", "x\n");
        std::fs::set_permissions(scratch.file("short"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let file = scratch.write("causeway.toml", config(sink.address, admin));
        let output = run(causeway().arg("-c").arg(file).arg("run"), PATIENCE);
        assert_eq!(output.status.code(), Some(status), "{admin}: {}", said(&output));
        assert!(said(&output).contains(expected), "{admin}: {}", said(&output));
    }
}

/// SIGHUP: it moves, it takes another token, it closes; and where it cannot listen, everything stays as it was.
#[test]
fn a_reload_moves_it_or_says_why_not() {
    let sink = Sink::start();
    let world = World::new(sink.address);
    let first = world.address();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = (taken.local_addr().unwrap(), taken);
    let rewrite = |admin: &str| {
        world.scratch.write("causeway.toml", config(sink.address, admin));
        world.daemon.hang_up();
    };
    rewrite(&format!("[admin]\nlisten = \"{}\"", taken.0));
    world.daemon.wait_for_log("another program listens there");
    assert_eq!(world.get("/metrics").status, 200, "the old one stays");

    world.scratch.write("other", "fedcba9876543210fedcba9876543210\n");
    std::fs::set_permissions(world.scratch.file("other"), std::fs::Permissions::from_mode(0o600)).unwrap();
    rewrite(&format!("{ADMIN}token_file = \"other\""));
    world.daemon.wait_for_log("the new configuration is in force");
    assert_eq!(world.address(), first);
    assert_eq!(world.get("/metrics").status, 401, "the old token");
    let answer = world.ask_with("GET", "/metrics", "Authorization: bearer fedcba9876543210fedcba9876543210\r\n", "");
    assert_eq!(answer.status, 200);

    rewrite("[admin]\nlisten = \"127.0.0.2:0\"");
    world.daemon.wait_for_log("the admin interface listens no more");
    wait_until("it listens elsewhere", PATIENCE, || world.address() != first);
    assert_eq!(world.get("/metrics").status, 200);
    wait_until("nobody is at the old place", PATIENCE, || TcpStream::connect(first).is_err());

    let second = world.address();
    rewrite("");
    wait_until("it is closed", PATIENCE, || TcpStream::connect(second).is_err());
    let mut client = Client::hello(world.daemon.address());
    assert!(client.say("NOOP").starts_with("250"), "mail goes on");
}
