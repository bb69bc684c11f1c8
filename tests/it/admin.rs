//! The admin interface of the built daemon, over plain sockets.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;

use crate::common::{
    At, Client, Daemon, IN, PATIENCE, Reaction, Scratch, Sink, SinkPlan, causeway, out, relay, reserved_address, run,
    said, wait_until,
};
use causeway::tls::Identity;
use serde_json::{Value, json};

/// A relay that sends everything to `next`.
fn config(next: SocketAddr, admin: &str) -> String {
    let out = out(next);
    relay(&format!(
        r#"shutdown_grace = "10s"

[spool]
path = "spool"
min_free_space = "1MiB"
retry = ["1h"]

{IN}
tls = "off"
relay = true

{out}
{admin}
"#
    ))
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
            let (method, path) = (method.to_uppercase(), path.replace("{id}", "000100000001").replace("{name}", "out"));
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

/// The console's files need no token, and the same care otherwise: they are only read, and not by another site's page.
#[test]
fn s161_the_console_is_public_and_otherwise_no_exception() {
    let sink = Sink::start();
    let world = World::new(sink.address);
    let bookmark = "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n";
    for (method, path, fields, expected) in [
        ("GET", "/", bookmark, 200),
        ("HEAD", "/", "", 200),
        ("GET", "/console/app.js", "Sec-Fetch-Site: same-origin\r\n", 200),
        ("GET", "/console/vendor/d3-sankey/LICENSE", "", 200),
        ("GET", "/", "Sec-Fetch-Site: cross-site\r\n", 403),
        ("GET", "/console/app.js", "Origin: http://evil.example\r\n", 403),
        ("POST", "/", "", 405),
        ("DELETE", "/console/app.js", "", 405),
        // Beside it a stranger learns nothing.
        ("GET", "/console/other.js", "", 401),
        ("GET", "/console/..%2fopenapi.json", "", 401),
        ("GET", "/console/../api/v1/status", "", 401),
        ("GET", "//", "", 401),
    ] {
        let answer = world.ask_with(method, path, fields, "");
        assert_eq!(answer.status, expected, "{method} {path} {fields:?}: {answer:?}");
        assert!(answer.head.contains("x-content-type-options: nosniff"), "{answer:?}");
        assert_eq!(
            answer.head.contains("content-security-policy: default-src 'none'; script-src 'self'"),
            expected == 200
        );
        assert_eq!(answer.head.contains("cache-control: no-cache"), expected == 200, "{answer:?}");
        assert_eq!(answer.body.is_empty(), method == "HEAD", "{method} {path}");
        assert!(!answer.body.contains("mail.contoso.com") && !answer.body.contains(&world.token()), "{path}");
    }
    let page = world.ask_with("GET", "/", "", "");
    assert!(page.head.contains("content-type: text/html; charset=utf-8"), "{page:?}");
    let tag = page.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let again = world.ask_with("GET", "/", &format!("If-None-Match: {tag}\r\n"), "");
    assert_eq!((again.status, again.body.as_str()), (304, ""), "{again:?}");
    let answer = world.raw("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!(answer.status, 403, "{answer:?}");
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
    rewrite("[admin]\nlisten = \"\"");
    wait_until("it is closed", PATIENCE, || TcpStream::connect(second).is_err());
    let mut client = Client::hello(world.daemon.address());
    assert!(client.say("NOOP").starts_with("250"), "mail goes on");
}

const CONTENT: &[u8] = b"From: erin@fabrikam.com\r\nMessage-ID: <one@fabrikam.com>\r\nSubject: one\r\n\r\nhello\r\n";

/// The next hop refuses everything for now.
fn down() -> SinkPlan {
    SinkPlan::new().reacting(|at| match at {
        // Both: pipelined, the second would otherwise be taken without the first.
        At::Mail(_) | At::Rcpt(_) => Reaction::Say("451 4.3.0 not now".into()),
        _ => Reaction::Go,
    })
}

impl World {
    /// One with a port that its own command line can find.
    fn at_known_port(next: SocketAddr) -> Self {
        let scratch = Scratch::new();
        let admin = format!("[admin]\nlisten = \"{}\"", reserved_address());
        let daemon = Daemon::spawn(scratch.path(), &config(next, &admin));
        Self { scratch, daemon }
    }

    /// Sends a message and gives its number, once it was tried in vain.
    fn stuck(&self, from: &str, to: &[&str]) -> String {
        let mut client = Client::hello(self.daemon.address());
        let reply = client.deliver(from, to, CONTENT).unwrap();
        let id = reply.trim_end().rsplit(' ').next().unwrap().to_owned();
        assert!(reply.starts_with("250") && id.len() >= 12, "{reply}");
        wait_until("it was deferred", PATIENCE, || self.entry(&id).is_some_and(|entry| entry["status"] == "deferred"));
        id
    }

    fn list(&self, query: &str) -> Vec<Value> {
        let answer = self.get(&format!("/api/v1/queue?{query}"));
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        answer.json()["entries"].as_array().unwrap().clone()
    }

    fn entry(&self, id: &str) -> Option<Value> {
        self.list(&format!("id={id}")).into_iter().next()
    }

    fn change(&self, verb: &str, filter: &Value) -> Value {
        let wanted = json!({"filter": filter, "by": "alice", "reason": "as tested"});
        let answer = self.post(&format!("/api/v1/queue/{verb}"), &wanted);
        assert_eq!(answer.status, 200, "{verb} {filter}: {answer:?}");
        answer.json()
    }

    fn tracked(&self, event: &str, words: &str) -> usize {
        let files = std::fs::read_dir(self.scratch.file("tracking")).unwrap();
        let text: String = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
        let is_one = |line: &&str| line.contains(&format!("\"event\":\"{event}\"")) && line.contains(words);
        text.lines().filter(is_one).count()
    }

    fn wait_tracked(&self, event: &str, words: &str) {
        wait_until(&format!("{event} {words}"), PATIENCE, || self.tracked(event, words) == 1);
    }

    /// Exit status, standard output, standard error.
    fn cli(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = causeway();
        command.arg("-c").arg(self.scratch.file("causeway.toml")).args(arguments).env("SUDO_USER", "alice");
        let output = run(&mut command, PATIENCE);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

#[test]
fn what_waits_is_listed_shown_filtered_and_paged() {
    let sink = Sink::with(down());
    let world = World::new(sink.address);
    let ids: Vec<String> = [
        ("erin@fabrikam.com", &["julie@contoso.com", "david@contoso.com"][..]),
        ("frank@fabrikam.com", &["julie@contoso.com"]),
        ("", &["anna@example.net"]),
    ]
    .into_iter()
    .map(|(from, to)| world.stuck(from, to))
    .collect();
    for (query, expected) in [
        ("", vec![0, 1, 2]),
        ("sender=ERIN%40fabrikam.com", vec![0]),
        ("sender=%3C%3E", vec![2]),
        ("recipient=julie%40contoso.com", vec![0, 1]),
        ("recipient=julie%40contoso.com&sender=frank%40fabrikam.com", vec![1]),
        ("domain=example.net", vec![2]),
        ("domain=contoso.com&recipient=anna%40example.net", vec![]),
        ("connector=out", vec![0, 1, 2]),
        ("connector=in", vec![]),
        ("hop=smart-hosts", vec![0, 1, 2]),
        ("hop=example.net", vec![]),
        ("status=deferred", vec![0, 1, 2]),
        ("status=held", vec![]),
        ("older_than=3600", vec![]),
        ("younger_than=3600", vec![0, 1, 2]),
        ("sort=age&descending=true", vec![2, 1, 0]),
        ("sort=sender", vec![2, 0, 1]),
        ("sort=domain&descending=true", vec![2, 1, 0]),
    ] {
        let found: Vec<String> =
            world.list(query).iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect();
        let expected: Vec<String> = expected.into_iter().map(|index: usize| ids[index].clone()).collect();
        assert_eq!(found, expected, "{query}");
    }
    for order in ["", "&sort=age", "&sort=sender&descending=true"] {
        let mut found = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = world.get(&format!("/api/v1/queue?limit=1{order}{cursor}")).json();
            found.extend(page["entries"].as_array().unwrap().iter().map(|entry| entry["id"].clone()));
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={}", next.replace('@', "%40").replace('<', "%3C")),
                None => break,
            }
        }
        found.sort_by_key(ToString::to_string);
        assert_eq!(found, ids.iter().map(|id| json!(id)).collect::<Vec<_>>(), "{order}: every page once");
    }
    let shown = world.get(&format!("/api/v1/queue/{}", ids[0])).json();
    assert_eq!(shown["from"], "erin@fabrikam.com");
    assert_eq!(shown["message_id"], "<one@fabrikam.com>");
    assert_eq!(shown["received_by"], "in");
    assert_eq!(shown["copies"][0]["recipients"][1]["to"], "david@contoso.com");
    assert_eq!(shown["copies"][0]["entry"]["attempts"], 1);
    // The host is well and would take other mail: what it has against this one is said all the same.
    for why in [&shown["copies"][0]["entry"]["last"], &world.get("/api/v1/status").json()["hops"][0]["last"]] {
        assert!(why.as_str().is_some_and(|why| why.contains("451 4.3.0 not now")), "{why}");
    }
    assert_eq!(shown["attempts_in"], format!("causeway trace --id {}", ids[0]));
    for (path, status) in [
        ("/api/v1/queue/0FFFFFFFFFFF", 404),
        ("/api/v1/queue/../../etc", 404),
        ("/api/v1/queue/%2e%2e%2fetc", 400),
        ("/api/v1/queue/hold", 405),
        ("/api/v1/queue?cursor=x", 400),
        ("/api/v1/queue?sort=age&cursor=w1.2.3", 400),
    ] {
        let answer = world.get(path);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.json()["error"].is_string(), "{path}: {answer:?}");
    }
}

#[test]
fn what_is_held_stays_over_a_restart_and_goes_when_it_is_released() {
    let sink = Sink::with(down());
    let mut world = World::new(sink.address);
    let id = world.stuck("erin@fabrikam.com", &["julie@contoso.com"]);
    let other = world.stuck("frank@fabrikam.com", &["julie@contoso.com"]);
    assert_eq!(world.change("hold", &json!({"sender": "erin@fabrikam.com"}))["changed"], 1);
    assert_eq!(world.change("hold", &json!({"id": id}))["passed"], 1, "it is held already");
    world.wait_tracked("DEFER", "held by alice over the admin interface: as tested");
    // What is held is not tried, by whatever way its turn comes.
    assert_eq!(world.change("retry", &json!({"id": id}))["passed"], 1);
    assert_eq!(world.entry(&id).unwrap()["status"], "held");

    world.daemon.kill9();
    world.daemon = Daemon::spawn(world.scratch.path(), &config(sink.address, ADMIN));
    wait_until("the spool was read", PATIENCE, || {
        world.list("").len() == 2 && world.entry(&id).unwrap()["status"] == "held"
    });
    assert_eq!(world.entry(&id).unwrap()["attempts"], 1, "nothing else was forgotten");
    sink.replan(SinkPlan::new());
    wait_until("the other is known", PATIENCE, || world.change("retry", &json!({"id": other}))["changed"] == 1);
    assert_eq!(sink.wait_for(1)[0].from, "frank@fabrikam.com");
    assert_eq!(world.list("status=held").len(), 1, "the held one did not go along");

    assert_eq!(world.change("release", &json!({"status": "held"}))["changed"], 1);
    world.change("retry", &json!({"id": id}));
    assert_eq!(sink.wait_for(2)[1].from, "erin@fabrikam.com");
    wait_until("nothing waits", PATIENCE, || world.list("").is_empty());
    assert_eq!(sink.count(), 2, "each once");
}

#[test]
fn what_is_removed_or_returned_is_gone_for_good() {
    let sink = Sink::with(down());
    let mut world = World::new(sink.address);
    let removed = world.stuck("erin@fabrikam.com", &["julie@contoso.com"]);
    let returned = world.stuck("frank@fabrikam.com", &["david@contoso.com"]);
    let answer = world.post("/api/v1/queue/remove", &json!({"filter": {}}));
    assert_eq!(answer.status, 400, "nobody removes everything by mistake: {answer:?}");
    let answer = world.post("/api/v1/queue/remove", &json!({"filter": {"id": removed}, "by": "a\nb"}));
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(world.change("remove", &json!({"id": removed}))["changed"], 1);
    assert_eq!(world.change("remove", &json!({"id": removed}))["changed"], 0);
    world.wait_tracked("DROP", "removed by alice over the admin interface: as tested");
    assert!(world.entry(&removed).is_none());
    assert_eq!(world.change("hold", &json!({"id": returned}))["changed"], 1);
    assert_eq!(world.change("bounce", &json!({"id": returned}))["changed"], 1, "also what is held");
    world.wait_tracked("FAIL", "returned by alice over the admin interface: as tested");
    world.wait_tracked("DSN", "failure report");
    assert!(world.entry(&returned).is_none());

    // P1: neither comes back, whatever happens to the daemon; the report does.
    world.daemon.kill9();
    sink.replan(SinkPlan::new());
    world.daemon = Daemon::spawn(world.scratch.path(), &config(sink.address, ADMIN));
    wait_until("the report is tried", PATIENCE, || {
        world.change("retry", &json!({"sender": "<>"}));
        sink.count() == 1
    });
    let report = &sink.arrivals()[0];
    let text = String::from_utf8_lossy(&report.content).into_owned();
    assert_eq!((report.from.as_str(), report.to.as_slice()), ("", &["frank@fabrikam.com".to_owned()][..]));
    assert!(text.contains("Status: 5.7.1") && text.contains("returned by alice"), "{text}");
    wait_until("nothing waits", PATIENCE, || world.list("").is_empty());
    assert_eq!(world.daemon.terminate().code(), Some(0));
    assert_eq!(sink.count(), 1);
}

/// A copy that somebody tries at this moment is in that one's hands.
#[test]
fn what_is_being_tried_is_left_alone() {
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let sink = Sink::with(SinkPlan::new().reacting(move |at| match at {
        At::End(_) => {
            let _ = gate.lock().unwrap().recv_timeout(PATIENCE);
            Reaction::Go
        }
        _ => Reaction::Go,
    }));
    let world = World::new(sink.address);
    let mut client = Client::hello(world.daemon.address());
    let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com"], CONTENT).unwrap();
    let id = reply.trim_end().rsplit(' ').next().unwrap().to_owned();
    wait_until("it is tried", PATIENCE, || world.entry(&id).is_some_and(|entry| entry["status"] == "active"));
    for verb in ["remove", "bounce", "retry"] {
        let changed = world.change(verb, &json!({"id": id}));
        assert_eq!((&changed["changed"], &changed["busy"]), (&json!(0), &json!(1)), "{verb}");
    }
    go.send(()).unwrap();
    sink.wait_for(1);
    wait_until("it is gone", PATIENCE, || world.list("").is_empty());
    assert_eq!(world.tracked("DROP", &id) + world.tracked("FAIL", &id), 0);
    assert_eq!(sink.count(), 1);
}

#[test]
fn the_command_line_shows_asks_and_does() {
    let sink = Sink::with(down());
    let mut world = World::at_known_port(sink.address);
    let id = world.stuck("erin@fabrikam.com", &["julie@contoso.com"]);
    let (status, text, errors) = world.cli(&["queue", "list"]);
    assert_eq!(status, Some(0), "{errors}");
    let row = text.lines().nth(1).unwrap_or_else(|| panic!("{text}"));
    for word in [id.as_str(), "deferred", " in ", "out", "erin@fabrikam.com", "julie@contoso.com"] {
        assert!(row.contains(word), "{word}: {text}");
    }
    let (status, text, _) = world.cli(&["queue", "list", "--sender", "erin@fabrikam.com", "--json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &list["entries"][0]["id"]), (Some(0), &json!(id)));
    let (_, table, _) = world.cli(&["queue", "list"]);
    assert!(table.contains("WHY") && table.contains("451 4.3.0 not now"), "{table}");
    let (status, text, _) = world.cli(&["queue", "show", &id]);
    assert_eq!(status, Some(0));
    let trace = format!("causeway -c {} trace --id {id}", world.scratch.file("causeway.toml").display());
    for word in ["<one@fabrikam.com>", "copy 0 via out", "to julie@contoso.com", "attempts: 1", &trace] {
        assert!(text.contains(word), "{word}: {text}");
    }
    for (arguments, expected, words) in [
        (&["queue", "list", "--sender", "nobody@fabrikam.com"][..], 1, "no copy matches"),
        (&["queue", "list", "--connector", "oud"], 2, "no send connector is named \"oud\"; did you mean \"out\"?"),
        (&["queue", "remove", "--connector", "oud", "--yes"], 2, "did you mean \"out\"?"),
        (&["queue", "remove", "--connector", "OUT", "--domain", "fabrikam.com", "--yes"], 1, "no copy matches"),
        (&["queue", "list", "--limit", "0"], 2, "0 is not in 1.."),
        (&["queue", "show", "0FFFFFFFFFFF"], 1, "does not wait here"),
        (&["queue", "show", "x"], 2, "is no id"),
        (&["queue", "remove"], 2, "say which by ID or filter, or --all"),
        (&["queue", "remove", "--all", "--domain", "contoso.com"], 2, "and not both"),
        (&["queue", "hold", "--all"], 2, "nobody is there to ask; say --yes"),
    ] {
        let (status, _, errors) = world.cli(arguments);
        assert_eq!(status, Some(expected), "{arguments:?}: {errors}");
        assert!(errors.contains(words), "{arguments:?}: {errors}");
    }
    assert_eq!(world.entry(&id).unwrap()["status"], "deferred", "nothing was done without an answer");
    let (status, text, errors) = world.cli(&["queue", "hold", &id, "--yes", "--reason", "a test"]);
    assert_eq!((status, text.as_str()), (Some(0), "1 copy held\n"), "{errors}");
    assert!(errors.contains(&id), "it shows what it touches: {errors}");
    world.wait_tracked("DEFER", "held by alice over the admin interface: a test");
    let (status, text, errors) = world.cli(&["queue", "retry", "--all", "--yes"]);
    assert_eq!((status, text.as_str()), (Some(1), "1 copy is held: release it first\n"), "{errors}");
    let (status, text, errors) = world.cli(&["queue", "hold", "--all", "--yes"]);
    assert_eq!((status, text.as_str()), (Some(1), "1 copy is held already\n"), "{errors}");
    // Where nothing says who it is, the list of users does.
    let file = world.scratch.file("causeway.toml");
    let mut command = causeway();
    command.arg("-c").arg(&file).args(["queue", "release", &id, "--yes"]);
    let output = run(command.env_remove("SUDO_USER").env_remove("USER").env("LOGNAME", ""), PATIENCE);
    assert!(said(&output).starts_with("1 copy released\n"), "{}", said(&output));
    let uid = nix::unistd::getuid();
    let name = nix::unistd::User::from_uid(uid).unwrap().map_or_else(|| format!("user {uid}"), |user| user.name);
    world.wait_tracked("DEFER", &format!("released by {name} over the admin interface"));
    assert_eq!(world.cli(&["queue", "release", "--all", "--yes"]).1, "1 copy is not held\n");
    assert_eq!(world.cli(&["queue", "hold", &id, "--yes"]).0, Some(0));
    let (status, text, _) = world.cli(&["queue", "remove", "--status", "held", "--yes", "--json"]);
    let changed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &changed["changed"]), (Some(0), &json!(1)));
    wait_until("nothing waits", PATIENCE, || world.list("").is_empty());
    let (status, text, errors) = world.cli(&["queue", "list"]);
    assert_eq!((status, text.as_str(), errors.as_str()), (Some(0), "the queue is empty\n", ""));
    let (status, text, _) = world.cli(&["queue", "list", "--json"]);
    assert_eq!((status, serde_json::from_str::<Value>(&text).unwrap()["entries"].clone()), (Some(0), json!([])));
    let (status, _, errors) = world.cli(&["queue", "retry", "--all", "--yes"]);
    assert_eq!((status, errors.as_str()), (Some(1), "causeway: the queue is empty\n"));
    assert_eq!(world.daemon.terminate().code(), Some(0));
    let (status, _, errors) = world.cli(&["queue", "list"]);
    assert_eq!(status, Some(3), "{errors}");
    assert!(errors.contains("the daemon cannot be reached"), "{errors}");
}

/// Figures, the dashboard and the alerts speak of the same things.
#[test]
fn status_and_metrics_tell_what_happened() {
    let sink = Sink::with(SinkPlan::new().reacting(|at| match at {
        At::Rcpt(to) if to.contains("later@") => Reaction::Say("451 4.3.0 not now".into()),
        At::Rcpt(to) if to.contains("never@") => Reaction::Say("550 5.1.1 never".into()),
        _ => Reaction::Go,
    }));
    let mut world = World::at_known_port(sink.address);
    let mut client = Client::hello(world.daemon.address());
    let to = ["julie@contoso.com", "later@contoso.com", "never@contoso.com"];
    assert!(client.deliver("erin@fabrikam.com", &to, CONTENT).unwrap().starts_with("250"));
    assert!(client.deliver("erin@fabrikam.com", &["not an address"], CONTENT).unwrap().starts_with('5'));
    // The message, and the report about one of its recipients.
    sink.wait_for(2);
    let figure = |name: &str| -> f64 {
        let text = world.get("/metrics").body;
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("{name}: {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    wait_until("the report is counted", PATIENCE, || {
        let delivered = figure("causeway_delivered_recipients_total{connector=\"out\"}");
        let deferred = figure("causeway_deferred_recipients_total{connector=\"out\"}");
        (delivered, deferred, figure("causeway_queue_messages")) == (2.0, 1.0, 1.0)
    });
    for (name, expected) in [
        ("causeway_accepted_messages_total", 1.0),
        ("causeway_accepted_bytes_total", CONTENT.len() as f64),
        ("causeway_reports_total", 1.0),
        ("causeway_failed_logins_total", 0.0),
        ("causeway_deferred_recipients_total{connector=\"out\"}", 1.0),
        ("causeway_failed_recipients_total{connector=\"out\"}", 1.0),
        ("causeway_commit_seconds_count", 1.0),
        ("causeway_delivery_seconds_count", 2.0),
        ("causeway_delivery_seconds_bucket{le=\"+Inf\"}", 2.0),
        ("causeway_queue_messages", 1.0),
        ("causeway_connections_open", 1.0),
    ] {
        assert_eq!(figure(name), expected, "{name}");
    }
    let metrics = world.get("/metrics").body;
    let known: Vec<&str> = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(known.contains(&name) || known.contains(&base), "{line} has no HELP and TYPE");
    }
    for file in ["config/grafana-dashboard.json", "config/prometheus-alerts.yml"] {
        let text = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut seen = 0;
        for word in text.split(|c| !is_name(c)).filter(|word| word.starts_with("causeway_")) {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            assert!(known.contains(&word) || known.contains(&base), "{file}: {word} is not a figure");
            seen += 1;
        }
        assert!(seen > 5, "{file}");
    }

    let status = world.get("/api/v1/status").json();
    let out = &status["connectors"][0];
    assert_eq!((&out["name"], &out["state"], &out["counts"]), (&json!("out"), &json!("up"), &json!([2, 1, 1])));
    assert!(out["proved"]["what"].as_str().unwrap().contains(&sink.address.port().to_string()), "{out}");
    assert!(out["fault"]["what"].as_str().unwrap().contains("451 4.3.0 not now"), "{out}");
    assert_eq!((&status["messages"], &status["accepted"], &status["refuses"]), (&json!(1), &json!(1), &Value::Null));
    for command in ["status", "top"] {
        let (code, text, errors) = world.cli(&[command]);
        assert_eq!(code, Some(0), "{command}: {errors}");
        for word in ["takes mail", "1 message, ", "out  up", "2 delivered, 1 put off, 1 failed", "451 4.3.0 not now"] {
            assert!(text.contains(word), "{command}: {word}: {text}");
        }
    }
    let (code, text, _) = world.cli(&["status", "--json"]);
    assert_eq!((code, serde_json::from_str::<Value>(&text).unwrap()["held"].clone()), (Some(0), json!(0)));
    drop(client);
    assert_eq!(world.daemon.terminate().code(), Some(0));
    for command in ["status", "top"] {
        assert_eq!(world.cli(&[command]).0, Some(3), "{command}");
    }
}

/// A daemon does well while its configuration is being mended; what asks it needs little of the file.
#[test]
fn faults_elsewhere_in_the_file_keep_nobody_from_asking() {
    let sink = Sink::with(down());
    let world = World::at_known_port(sink.address);
    let id = world.stuck("erin@fabrikam.com", &["julie@contoso.com"]);
    let sound = std::fs::read_to_string(world.scratch.file("causeway.toml")).unwrap();
    let gone = "[[directory]]\npath = \"gone.csv\"\n[[accepted_domain]]";
    let locked = world.scratch.write("locked.csv", "address\n");
    std::fs::set_permissions(locked, std::fs::Permissions::from_mode(0o000)).unwrap();
    for (from, to, warns) in [
        ("[[accepted_domain]]", gone, true),
        ("relay = true", "relay = true\ncertificate = \"gone.crt\"\nkey = \"gone.key\"", true),
        ("origin = \"internet\"", "orign = \"internet\"", true),
        ("tls = \"off\"", "tls = off", true),
        // What this user may not read, the daemon's may.
        ("[[accepted_domain]]", "[[directory]]\npath = \"locked.csv\"\n[[accepted_domain]]", false),
    ] {
        world.scratch.write("causeway.toml", sound.replacen(from, to, 1));
        for (arguments, expected) in [
            (&["status"][..], "takes mail"),
            (&["queue", "list"], &id),
            (&["top"], "takes mail"),
            (&["trace", "--id", &id], &id),
        ] {
            let (status, text, errors) = world.cli(arguments);
            assert_eq!(status, Some(0), "{to}: {arguments:?}: {errors}");
            assert!(text.contains(expected), "{to}: {arguments:?}: {text}");
            let check = format!("run causeway -c {} check", world.scratch.file("causeway.toml").display());
            assert_eq!(errors.contains("the configuration has ") && errors.contains(&check), warns, "{to}: {errors}");
        }
    }
    // Its own section must be right.
    world.scratch.write("causeway.toml", sound.replacen("[admin]", "[admin]\nlisen = \"\"", 1));
    let (status, _, errors) = world.cli(&["status"]);
    assert_eq!(status, Some(2), "{errors}");
    assert!(errors.contains("did you mean \"listen\"?"), "{errors}");
}

/// 3 is for a daemon that does not answer; what the one who asks can mend is 2.
#[test]
fn who_has_no_token_is_told_where_it_should_be() {
    let sink = Sink::start();
    let world = World::at_known_port(sink.address);
    let (address, file) = (world.address(), world.scratch.file("secrets/admin"));
    let sound = std::fs::read(&file).unwrap();
    let other = "0123456789abcdef0123456789abcdef\n";
    let refused = format!("causeway: {address} refused the token in {}: is it another relay's?", file.display());
    for (text, mode, expected) in [
        (Some(other), 0o600, refused.as_str()),
        (Some("short\n"), 0o600, "at least 16 characters"),
        (Some(other), 0o644, "others can read"),
        (None, 0, "the daemon makes it when it starts"),
    ] {
        let _ = std::fs::remove_file(&file);
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let (status, _, errors) = world.cli(&["status"]);
        assert_eq!(status, Some(2), "{text:?} {mode:o}: {errors}");
        assert!(errors.contains(expected) && errors.contains("secrets/admin"), "{text:?} {mode:o}: {errors}");
    }
    std::fs::write(&file, sound).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.cli(&["status"]).0, Some(0));

    // Somebody else on the port: a mail server.
    let strange = config(sink.address, &format!("[admin]\nlisten = \"{}\"", sink.address));
    world.scratch.write("causeway.toml", strange);
    let (status, _, errors) = world.cli(&["status"]);
    assert_eq!(status, Some(3), "{errors}");
    assert!(errors.contains("what listens there does not speak HTTP"), "{errors}");
}

/// Every value is as the document says: nothing undocumented, no other type, no word that is not in the list.
fn check_documented(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/components/schemas/")) {
        return check_documented(document, &document["components"]["schemas"][name], value, place);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => panic!("{place}: the document does not say what it is"),
    };
    let found: &[&str] = match value {
        Value::Null => &["null"],
        Value::Bool(_) => &["boolean"],
        Value::Number(number) if number.is_f64() => &["number"],
        Value::Number(_) => &["integer", "number"],
        Value::String(_) => &["string"],
        Value::Array(_) => &["array"],
        Value::Object(_) => &["object"],
    };
    assert!(found.iter().any(|found| types.contains(found)), "{place}: {value} is not {types:?}");
    if let Some(words) = schema["enum"].as_array().filter(|_| value.is_string()) {
        assert!(words.contains(value), "{place}: {value} is not one of {words:?}");
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check_documented(document, &schema["items"], item, &format!("{place}[{index}]"));
    }
    for (key, item) in value.as_object().into_iter().flatten() {
        let property = &schema["properties"][key];
        assert!(property.is_object(), "{place}.{key} is not in the document");
        check_documented(document, property, item, &format!("{place}.{key}"));
    }
}

impl World {
    fn with(config: &str, files: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new();
        for (name, content) in files {
            scratch.write(name, content);
        }
        let daemon = Daemon::spawn(scratch.path(), config);
        Self { scratch, daemon }
    }

    /// The answer to a question, which is as the document says.
    fn documented(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = if method == "get" { self.get(path) } else { self.post(path, body) };
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let document = self.get("/api/v1/openapi.json").json();
        let bare = path.split('?').next().unwrap();
        let is_it = |pattern: &&String| {
            let (pattern, bare): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), bare.split('/').collect());
            pattern.len() == bare.len()
                && pattern.iter().zip(&bare).all(|(part, found)| part == found || part.starts_with('{'))
        };
        let paths = document["paths"].as_object().unwrap();
        let exact = paths.keys().find(|pattern| *pattern == bare);
        let pattern = exact.or_else(|| paths.keys().find(is_it)).unwrap_or_else(|| panic!("{path}"));
        let schema = &paths[pattern][method]["responses"]["200"]["content"]["application/json"]["schema"];
        check_documented(&document, schema, &answer.json(), path);
        answer.json()
    }
}

/// Two next hops, a directory, and recipients of every fate.
fn sorted(inside: SocketAddr, outside: SocketAddr) -> String {
    let one = config(outside, ADMIN).replace("type = \"external-relay\"", "type = \"authoritative\"");
    format!(
        "{one}\n[[directory]]\npath = \"recipients.csv\"\n\n[[send_connector]]\nname = \"to-inside\"\n\
         address_spaces = [\"contoso.com\"]\nsmart_hosts = [\"{inside}\"]\ntls = \"off\"\n\n\
         [[send_connector]]\nname = \"asleep\"\nenabled = false\naddress_spaces = [\"asleep.example\"]\n\
         smart_hosts = [\"{inside}\"]\ntls = \"off\"\n"
    )
}

const RECIPIENTS: &str = "address,type,target\njulie@contoso.com,on-premises,\nlater@contoso.com,on-premises,\n\
    team@contoso.com,group,julie@contoso.com eve@fabrikam.com\n";

fn later_and_never() -> SinkPlan {
    SinkPlan::new().reacting(|at| match at {
        At::Rcpt(to) if to.contains("later@") => Reaction::Say("451 4.3.0 not now".into()),
        At::Rcpt(to) if to.contains("never@") => Reaction::Say("550 5.1.1 never".into()),
        _ => Reaction::Go,
    })
}

#[test]
fn the_flow_tells_every_recipients_way() {
    let (inside, outside) = (Sink::with(later_and_never()), Sink::with(later_and_never()));
    let files = [("recipients.csv", RECIPIENTS)];
    let mut world = World::with(&sorted(inside.address, outside.address), &files);
    let mut client = Client::hello(world.daemon.address());
    let to = ["julie@contoso.com", "later@contoso.com", "never@fabrikam.com", "TEAM@contoso.com"];
    assert!(client.deliver("erin@fabrikam.com", &to, CONTENT).unwrap().starts_with("250"));
    assert!(client.deliver("erin@fabrikam.com", &["nobody@contoso.com"], CONTENT).unwrap().starts_with("550"));
    let (to_inside, to_outside) = (inside.address.to_string(), outside.address.to_string());
    let row = |path: &Value| {
        let word = |key: &str| path[key].as_str().unwrap().to_owned();
        let counts = ["delivered", "deferred", "failed", "waiting"].map(|key| path[key].as_u64().unwrap());
        (word("origin"), word("verdict"), word("connector"), word("hop"), counts)
    };
    let rows = |world: &World| {
        let flow = world.documented("get", "/api/v1/flow?minutes=60", &Value::Null);
        assert_eq!(flow["complete"], true, "{flow}");
        let mut rows: Vec<_> = flow["paths"].as_array().unwrap().iter().map(row).collect();
        rows.sort();
        rows
    };
    let way = |origin: &str, said: &str, via: &str, hop: &str, counts: [u64; 4]| {
        (origin.to_owned(), said.to_owned(), via.to_owned(), hop.to_owned(), counts)
    };
    let expected = [
        // She is a member of the group, too, and has the message once.
        way("internet", "group", "out", &to_outside, [1, 0, 0, 0]),
        way("internet", "not in the directory", "", "", [0, 0, 1, 0]),
        way("internet", "on-premises mailbox", "to-inside", &to_inside, [1, 1, 0, 0]),
        way("internet", "relayed by address space", "out", &to_outside, [0, 0, 1, 0]),
        way("this relay", "report", "out", &to_outside, [1, 0, 0, 0]),
    ];
    wait_until("all is settled", PATIENCE, || rows(&world) == expected);
    for (query, to) in [
        ("verdict=group", &["eve@fabrikam.com"][..]),
        ("verdict=on-premises%20mailbox&state=deferred", &["later@contoso.com"]),
        ("connector=to-inside&state=delivered", &["julie@contoso.com"]),
        ("verdict=not%20in%20the%20directory", &["nobody@contoso.com"]),
        ("verdict=refused", &[]),
        ("state=failed&connector=out", &["never@fabrikam.com"]),
        ("origin=this%20relay", &["erin@fabrikam.com"]),
        ("origin=cloud", &[]),
        ("hop=others", &[]),
        ("receive_connector=in&hop=&state=delivered&verdict=group", &["eve@fabrikam.com"]),
    ] {
        let answer = world.documented("get", &format!("/api/v1/flow/messages?{query}"), &Value::Null);
        let found: Vec<&str> =
            answer["messages"].as_array().unwrap().iter().map(|line| line["to"].as_str().unwrap()).collect();
        assert_eq!(found, to, "{query}: {answer}");
        assert!(answer["more"] == 0, "{query}: {answer}");
    }
    let path = format!("/api/v1/flow/messages?limit=2&hop={to_outside}");
    let page = world.documented("get", &path, &Value::Null);
    assert_eq!((page["messages"].as_array().unwrap().len(), &page["more"]), (2, &json!(1)), "{page}");
    for query in [
        "minutes=0",
        "minutes=61",
        "minutes=x",
        "minutes=1&minutes=2",
        "state=odd",
        "verdict=odd",
        "limit=1001",
        "odd=1",
    ] {
        let answer = world.get(&format!("/api/v1/flow/messages?{query}"));
        assert_eq!((answer.status, answer.json()["error"].is_string()), (400, true), "{query}: {answer:?}");
    }

    // What waited over a restart came earlier than the picture tells.
    drop(client);
    assert_eq!(world.daemon.terminate().code(), Some(0));
    inside.replan(SinkPlan::new());
    world.daemon = Daemon::spawn(world.scratch.path(), &sorted(inside.address, outside.address));
    assert_eq!(rows(&world), []);
    wait_until("it is tried", PATIENCE, || {
        world.change("retry", &json!({"recipient": "later@contoso.com"}));
        rows(&world) == [way("internet", "accepted earlier", "to-inside", &to_inside, [1, 0, 0, 0])]
    });
}

#[test]
fn the_load_has_columns_of_equal_length() {
    let sink = Sink::start();
    let world = World::new(sink.address);
    let mut client = Client::hello(world.daemon.address());
    assert!(client.deliver("erin@fabrikam.com", &["julie@contoso.com"], CONTENT).unwrap().starts_with("250"));
    sink.wait_for(1);
    for (range, step, length) in [("10m", 5, 120), ("2h", 60, 120), ("24h", 600, 144)] {
        let load = world.documented("get", &format!("/api/v1/load?range={range}"), &Value::Null);
        assert_eq!(load["step"], step);
        for (name, column) in load.as_object().unwrap() {
            assert!(name == "step" || column.as_array().unwrap().len() == length, "{range} {name}: {load}");
        }
    }
    for query in ["range=1h", "range=10m&range=2h", "odd=1"] {
        assert_eq!(world.get(&format!("/api/v1/load?{query}")).status, 400, "{query}");
    }
    let known = |name: &str| -> Vec<f64> {
        let load = world.get("/api/v1/load").json();
        load[name].as_array().unwrap().iter().filter_map(Value::as_f64).collect()
    };
    wait_until("a step with this connection is over", PATIENCE, || known("connections").contains(&1.0));
    let before = known("accepted").len();
    assert!(client.deliver("erin@fabrikam.com", &["julie@contoso.com"], CONTENT).unwrap().starts_with("250"));
    wait_until("a step with this message is over", PATIENCE, || {
        known("accepted").iter().skip(before).any(|rate| *rate > 0.0)
            && known("delivered").iter().any(|rate| *rate > 0.0)
            && known("commit_p99").iter().any(|millis| *millis > 0.0)
    });
}

/// Over HTTP and on the command line one answer.
#[test]
fn trace_and_explain_say_what_the_command_line_says() {
    let (inside, outside) = (Sink::with(later_and_never()), Sink::with(later_and_never()));
    let world = World::with(&sorted(inside.address, outside.address), &[("recipients.csv", RECIPIENTS)]);
    let mut client = Client::hello(world.daemon.address());
    let to = ["julie@contoso.com", "later@contoso.com", "never@fabrikam.com"];
    let reply = client.deliver("erin@fabrikam.com", &to, CONTENT).unwrap();
    let id = reply.trim_end().rsplit(' ').next().unwrap().to_owned();
    world.wait_tracked("SEND", "\"from\":\"<>\"");
    world.wait_tracked("SEND", "julie@contoso.com");
    world.wait_tracked("DEFER", "later@contoso.com");
    let cli = |arguments: &[&str]| -> Value {
        let (_, text, errors) = world.cli(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text} {errors}"))
    };
    for (query, arguments) in [
        (format!("id={id}"), &["--id", id.as_str()][..]),
        ("message_id=%3Cone%40fabrikam.com%3E".to_owned(), &["--message-id", "<one@fabrikam.com>"]),
        ("from=erin%40fabrikam.com&since=1h&limit=20".to_owned(), &["--from", "erin@fabrikam.com", "--since", "1h"]),
        ("to=never%40fabrikam.com&id=".to_owned(), &["--to", "never@fabrikam.com"]),
        ("from=nobody%40fabrikam.com".to_owned(), &["--from", "nobody@fabrikam.com"]),
    ] {
        let mut found = world.documented("get", &format!("/api/v1/trace?{query}"), &Value::Null);
        assert_eq!(found.as_object_mut().unwrap().remove("remarks"), Some(json!([])));
        let expected = cli(&[&["trace", "--json"], arguments].concat());
        assert_eq!(found, expected, "{query}");
        assert_eq!(found["messages"].as_array().unwrap().is_empty(), query.contains("nobody"), "{query}");
    }
    let traced = world.get(&format!("/api/v1/trace?id={id}")).json();
    assert!(!traced["messages"][0]["reports"][0]["events"].as_array().unwrap().is_empty(), "{traced}");
    for query in ["", "limit=5", "id=x", "since=soon", "limit=0&id=1", "limit=201&id=1", "odd=1"] {
        let answer = world.get(&format!("/api/v1/trace?{query}"));
        assert_eq!((answer.status, answer.json()["error"].is_string()), (400, true), "{query}: {answer:?}");
    }

    for (question, arguments) in [
        (
            json!({"from": "erin@fabrikam.com", "to": to}),
            &["--from", "erin@fabrikam.com", "--to", to[0], "--to", to[1], "--to", to[2]][..],
        ),
        (
            json!({"to": ["nobody@contoso.com", "team@contoso.com"], "origin": "internet"}),
            &["--from", "", "--to", "nobody@contoso.com", "--to", "team@contoso.com"],
        ),
        (
            json!({"from": "<>", "to": ["julie@contoso.com"], "client": "203.0.113.9", "size": "1GiB"}),
            &["--from", "", "--to", "julie@contoso.com", "--client", "203.0.113.9", "--size", "1GiB"],
        ),
    ] {
        let found = world.documented("post", "/api/v1/explain", &question);
        assert_eq!(found, cli(&[&["explain", "--json"], arguments].concat()), "{question}");
    }
    for question in [
        json!({"from": "erin@fabrikam.com"}),
        json!({"to": []}),
        json!({"to": vec!["julie@contoso.com"; 101]}),
        json!({"to": ["julie@"]}),
        json!({"from": "erin@", "to": ["julie@contoso.com"]}),
        json!({"to": ["julie@contoso.com"], "origin": "odd"}),
        json!({"to": ["julie@contoso.com"], "origin": "cloud"}),
        json!({"to": ["julie@contoso.com"], "origin": "internet", "client": "192.0.2.1"}),
        json!({"to": ["julie@contoso.com"], "size": "much"}),
        json!({"to": ["julie@contoso.com"], "odd": 1}),
    ] {
        let answer = world.post("/api/v1/explain", &question);
        assert_eq!((answer.status, answer.json()["error"].is_string()), (400, true), "{question}: {answer:?}");
    }
    assert_eq!(world.get("/api/v1/explain").status, 405);
}

#[test]
fn without_tracking_there_is_no_trace_and_the_rest_goes_on() {
    let sink = Sink::with(down());
    let text = config(sink.address, ADMIN).replace("path = \"tracking\"", "path = \"\"");
    let world = World::with(&text, &[]);
    let answer = world.get("/api/v1/trace?id=1");
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(answer.json()["error"].as_str().unwrap().contains("[tracking] path = \"\""), "{answer:?}");
    let id = world.stuck("erin@fabrikam.com", &["julie@contoso.com"]);
    let shown = world.documented("get", &format!("/api/v1/queue/{id}"), &Value::Null);
    assert_eq!(shown["copies"][0]["attempts"], json!([]));
}

#[test]
fn a_connector_is_tested_as_check_live_does() {
    let sink = Sink::start();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = sorted(sink.address, closed)
        .replace("name = \"to-inside\"\n", "name = \"to-inside\"\nhelo = \"relay.contoso.com\"\n");
    let world = World::with(&text, &[("recipients.csv", RECIPIENTS)]);
    let test = |name: &str| world.documented("post", &format!("/api/v1/connectors/{name}/test"), &json!({}));
    let found = test("to-inside");
    assert_eq!((&found["name"], &found["ok"]), (&json!("to-inside"), &json!(true)), "{found}");
    assert_eq!(found["findings"][0]["level"], "ok", "{found}");
    assert_eq!((&found["hosts"][0]["flows"], found["hosts"].as_array().unwrap().len()), (&json!(true), 1), "{found}");
    let found = test("out");
    assert_eq!((&found["ok"], &found["findings"][0]["level"]), (&json!(false), &json!("error")), "{found}");
    assert!(found["findings"][0]["text"].as_str().unwrap().contains("refused"), "{found}");
    for (name, status) in [("nobody", 404), ("asleep", 409), ("%2e%2e", 404)] {
        let answer = world.post(&format!("/api/v1/connectors/{name}/test"), &json!({}));
        assert_eq!((answer.status, answer.json()["error"].is_string()), (status, true), "{name}: {answer:?}");
    }
    assert_eq!(world.get("/api/v1/connectors/out/test").status, 405);
    assert_eq!(sink.count(), 0, "nothing was sent");

    // While one is under way there is no second.
    let (began, begun) = std::sync::mpsc::channel::<()>();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    sink.replan(SinkPlan::new().reacting(move |at| {
        if matches!(at, At::Connected) {
            let _ = began.send(());
            let _ = gate.lock().unwrap().recv_timeout(PATIENCE);
        }
        Reaction::Go
    }));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| test("to-inside"));
        begun.recv_timeout(PATIENCE).unwrap();
        let second = world.post("/api/v1/connectors/to-inside/test", &json!({}));
        go.send(()).unwrap();
        assert_eq!((second.status, second.json()["error"].is_string()), (409, true), "{second:?}");
        assert_eq!(first.join().unwrap()["ok"], true);
    });
}

/// Every attempt with host, status and reply; and the queue by age.
#[test]
fn what_waits_is_shown_with_its_attempts_and_its_age() {
    let sink = Sink::with(down());
    let world = World::at_known_port(sink.address);
    let id = world.stuck("erin@fabrikam.com", &["julie@contoso.com", "later@contoso.com"]);
    let other = world.stuck("frank@fabrikam.com", &["julie@contoso.com"]);
    sink.replan(later_and_never());
    assert_eq!(world.change("retry", &json!({"id": id}))["changed"], 1);
    sink.wait_for(1);
    world.wait_tracked("SEND", &id);
    wait_until("the rest waits", PATIENCE, || world.entry(&id).is_some_and(|entry| entry["attempts"] == 2));
    let shown = world.documented("get", &format!("/api/v1/queue/{id}"), &Value::Null);
    let attempts = shown["copies"][0]["attempts"].as_array().unwrap();
    let told: Vec<(String, Value)> =
        attempts.iter().map(|attempt| (attempt["event"].as_str().unwrap().to_owned(), attempt["to"].clone())).collect();
    let (one, both) = (json!(["later@contoso.com"]), json!(["julie@contoso.com", "later@contoso.com"]));
    let expected = [("DEFER", one), ("SEND", json!(["julie@contoso.com"])), ("DEFER", both)];
    assert_eq!(told, expected.map(|(event, to)| (event.to_owned(), to)), "{shown}");
    for attempt in attempts {
        assert!(attempt["host"].as_str().unwrap().contains("127.0.0.1"), "{attempt}");
    }
    assert!(attempts[0]["reply"].as_str().unwrap().ends_with("451 4.3.0 not now"), "{shown}");
    let next = shown["copies"][0]["entry"]["next"].as_str().unwrap().split('.').next().unwrap();
    assert_eq!((&attempts[0]["attempt"], &attempts[1]["attempt"]), (&json!(2), &Value::Null), "{shown}");
    assert!(attempts[0]["next"].as_str().is_some_and(|at| at.starts_with(next)), "{shown}");
    assert_eq!((&attempts[0]["status"], &attempts[1]["tls"]), (&json!("4.3.0"), &json!("in the clear")), "{shown}");
    let page = world.documented("get", "/api/v1/queue?sort=age", &Value::Null);
    assert_eq!(page["entries"].as_array().unwrap().len(), 2);
    let wanted = json!({"filter": {"sender": "nobody@fabrikam.com"}});
    assert_eq!(world.documented("post", "/api/v1/queue/release", &wanted)["changed"], 0);
    let (status, text, errors) = world.cli(&["queue", "show", &id]);
    assert_eq!(status, Some(0), "{errors}");
    for words in
        ["DEFER  attempt 2  to later@contoso.com", "SEND   to julie@contoso.com", "(in the clear)", "451 4.3.0 not now"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }

    let status = world.documented("get", "/api/v1/status", &Value::Null);
    let words: Vec<&str> =
        status["ages"].as_array().unwrap().iter().map(|age| age["up_to"].as_str().unwrap()).collect();
    assert_eq!(words, ["5m", "15m", "1h", "4h", "1d", "2d", "beyond"]);
    let young = |world: &World| world.get("/api/v1/status").json()["ages"][0]["copies"].clone();
    assert_eq!(young(&world), 2);
    let accepted = &shown["accepted"];
    assert_eq!(&status["hops"][0]["oldest"], accepted, "{status}");
    assert_eq!(status["connectors"][0]["certificate_expires"], Value::Null, "it speaks in the clear");
    let (_, text, _) = world.cli(&["status"]);
    for words in ["ages         copies: 2 up to 5m", " deferred, the oldest "] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(world.change("hold", &json!({"id": other}))["changed"], 1);
    assert_eq!(young(&world), 2, "what is held has an age too");
    assert_eq!(world.change("remove", &json!({"id": other}))["changed"], 1);
    wait_until("it is gone", PATIENCE, || young(&world) == 1);
}

/// Whose certificate ends soon is seen before it does.
#[test]
fn the_end_of_a_peers_certificate_is_told() {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    scratch.issue(&authority, "sink", &["sink.example"]);
    let identity = Identity::load(&scratch.file("sink.crt"), &scratch.file("sink.key")).unwrap();
    let expires = serde_json::to_value(identity.expiry()).unwrap();
    let sink = Sink::with(SinkPlan { identity: Some(identity), ..SinkPlan::new() });
    let tls = "tls = \"domain\"\ntls_domain = [\"sink.example\"]\nca_file = \"ca.pem\"";
    let (before, after) = {
        let text = config(sink.address, ADMIN);
        let (before, after) = text.rsplit_once("tls = \"off\"").unwrap();
        (before.to_owned(), after.to_owned())
    };
    let daemon = Daemon::spawn(scratch.path(), &format!("{before}{tls}{after}"));
    let world = World { scratch, daemon };
    let ends =
        || world.documented("get", "/api/v1/status", &Value::Null)["connectors"][0]["certificate_expires"].clone();
    assert_eq!(ends(), Value::Null, "nothing was proved so far");
    let found = world.documented("post", "/api/v1/connectors/out/test", &json!({}));
    assert_eq!(found["hosts"][0]["tls"]["until"], expires, "{found}");
    let mut client = Client::hello(world.daemon.address());
    assert!(client.deliver("erin@fabrikam.com", &["julie@contoso.com"], CONTENT).unwrap().starts_with("250"));
    sink.wait_for(1);
    wait_until("it is noted", PATIENCE, || !ends().is_null());
    assert_eq!(ends(), expires);
}

/// S-163: who guesses waits; who knows does not.
#[test]
fn s163_wrong_tokens_are_answered_late() {
    let sink = Sink::start();
    let world = World::new(sink.address);
    let wrong = format!("Authorization: Bearer {}\r\n", "0".repeat(64));
    let begun = std::time::Instant::now();
    for _ in 0..8 {
        assert_eq!(world.ask_with("GET", "/api/v1/status", &wrong, "").status, 401);
    }
    // 20 + 40 + 80 + 160 + 320 ms.
    assert!(begun.elapsed() >= std::time::Duration::from_millis(620), "{:?}", begun.elapsed());
    assert_eq!(world.get("/api/v1/status").status, 200);
}
