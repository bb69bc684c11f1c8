//! The console as a person meets it: a headless Chromium at the page of a demo's relay.
//!
//! Each test keeps a picture of every step in `target/console-screenshots`, and at its end the browser must have nothing to
//! complain of: no exception, no failed request, nothing that the content security policy stopped.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

#[path = "common/browser.rs"]
mod browser;
mod common;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use browser::{Browser, ask, test_id};
use causeway::demo::client::{Client, Sent};
use causeway::demo::site::Behaviour;
use causeway::demo::{self, Arrival, Console, Plan, World};
use causeway::smtp::Reply;
use causeway::smtp::reply::Status;
use common::{PATIENCE, Scratch, causeway, run, said, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

const ERIN: &str = "erin@fabrikam.com";
const JULIE: &str = "julie@contoso.com";
const DAVID: &str = "david@contoso.com";
const NESTOR: &str = "nestor@adatum.com";

struct Test {
    browser: Browser,
    world: World,
    console: Console,
    _scratch: Scratch,
}

impl Test {
    /// A world without a trickle: nothing happens in it but what the test does.
    async fn start(name: &'static str) -> Option<Self> {
        let browser = Browser::start(name).await?;
        let scratch = Scratch::new();
        let quick = |text: String| {
            let ladder = "retry = [\"5s\", \"10s\", \"20s\"]";
            assert!(text.contains(ladder));
            text.replace(ladder, "retry = [\"1s\"]")
        };
        let plan = Plan { living: true, configuration: &quick, ..Plan::new(scratch.path()) };
        let world = World::start(plan).await.unwrap();
        let console = world.console.clone().unwrap();
        Some(Self { browser, world, console, _scratch: scratch })
    }

    /// Types the token.
    async fn sign_in(&mut self) {
        self.browser.open(&format!("http://{}/", self.console.address)).await;
        let token = self.console.token.clone();
        self.browser.fill("token", &token).await;
        self.browser.click("login").await;
        self.browser.find(&test_id("health")).await;
    }

    async fn go(&mut self, view: &str) {
        self.browser.click(&format!("nav-{view}")).await;
        self.browser.until(view, &format!("return location.hash.startsWith('#/{view}')")).await;
    }

    /// From the Internet.
    async fn send_from_outside(&self, sender: &str, to: &[&str], subject: &str) {
        accepted(
            &Client::new("client.fabrikam.com")
                .send(self.world.internet_door, sender, to, "", &content(sender, to, subject, subject))
                .await
                .unwrap(),
        );
    }

    /// From the organization's own server.
    async fn send_from_inside(&self, sender: &str, to: &[&str], content: &str) {
        accepted(&Client::new(demo::ON_PREMISES).send(self.world.own_door, sender, to, "", content).await.unwrap());
    }

    /// What the partner says to every recipient; `None`: it takes them.
    fn partner_says(&self, text: Option<&str>) {
        let reply = |text: &str| Reply { code: 451, status: Some(Status(4, 3, 2)), text: text.into() };
        let recipient = text.map(reply);
        self.world.partner.as_ref().unwrap().behave(Behaviour { recipient, ..Behaviour::default() });
    }

    async fn arrival(&mut self) -> Arrival {
        timeout(PATIENCE, self.world.arrivals.recv()).await.expect("something arrives").unwrap()
    }

    /// The end of every test.
    async fn finish(self) {
        assert_eq!(self.browser.complaints().await, Vec::<String>::new());
        self.world.stop().await;
    }
}

fn accepted(sent: &Sent) {
    assert!(sent.recipients.iter().chain(&sent.message).all(Reply::is_positive), "{sent:?}");
    assert!(sent.message.is_some(), "{sent:?}");
}

fn content(from: &str, to: &[&str], subject: &str, id: &str) -> String {
    let id = id.replace(' ', ".");
    format!(
        "From: <{from}>\r\nTo: <{}>\r\nSubject: {subject}\r\nMessage-ID: <{id}@fabrikam.com>\r\n\
         Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\nhello\r\n",
        to.join(">, <")
    )
}

/// An administrator's day, from the wrong token to the message that was stuck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_at_the_console() {
    let Some(mut test) = Test::start("day").await else { return };
    let address = format!("http://{}/", test.console.address);
    test.browser.open(&address).await;
    test.browser.fill("token", "0123456789abcdef0123456789abcdef").await;
    test.browser.click("login").await;
    test.browser.says("not the token").await;
    test.browser.shot("wrong-token").await;
    // The browser notes the answer 401 by itself, and nothing else is wrong.
    let complaints = test.browser.complaints().await;
    assert!(complaints.iter().all(|line| line.contains("401")), "{complaints:?}");
    assert!(test.browser.script("return sessionStorage.length === 0").await == json!(true), "it is not kept");

    test.sign_in().await;
    test.go("flow").await;
    test.browser.says("No mail").await;
    test.browser.shot("flow-empty").await;

    // A message for both premises becomes two ways in the picture.
    test.send_from_outside(ERIN, &[JULIE, DAVID], "Lunch on Friday?").await;
    let places = [test.arrival().await.place, test.arrival().await.place];
    assert!(places.contains(&"on-premises") && places.contains(&"cloud"), "{places:?}");
    test.browser.with_words("flow-band", &["to-on-premises", "delivered"]).await;
    test.browser.with_words("flow-band", &["to-cloud", "delivered"]).await;
    test.browser.shot("flow").await;

    // The messages in a band, and the life of one of them.
    test.browser.click_css(&band_to("to-on-premises")).await;
    let found = test.browser.with_words("flow-message", &[ERIN, JULIE]).await;
    assert!(!found.contains(DAVID), "the band is not his: {found}");
    test.browser.shot("flow-messages").await;
    test.browser.click_css(&format!("{0} a, a{0}", test_id("flow-message"))).await;
    for event in ["RECEIVE", "RESOLVE", "SEND"] {
        test.browser.with_words("trace-event", &[event]).await;
    }
    test.browser.with_words("trace-event", &["SEND", "to-cloud", demo::CLOUD]).await;
    test.browser.with_words("trace-event", &["RESOLVE", "on-premises mailbox"]).await;
    test.browser.shot("trace-of-it").await;

    // One that is deferred: held, after a question, and released.
    test.partner_says(Some("we are taking stock, come again"));
    test.send_from_inside(JULIE, &[NESTOR], &content(JULIE, &[NESTOR], "Delivery dates", "dates")).await;
    test.go("queue").await;
    test.browser.with_words("queue-row", &["deferred", JULIE, NESTOR, "to-partner", "we are taking stock"]).await;
    test.browser.shot("queue").await;
    test.browser.click("queue-select").await;
    test.browser.click("queue-hold").await;
    let question = test.browser.find("dialog[open]").await.text().await.unwrap();
    assert!(question.contains("1 copy") && question.contains(NESTOR), "{question}");
    test.browser.shot("queue-question").await;
    let held = || ask_queue(&test.console)["entries"][0]["status"] == "held";
    assert!(!held(), "not before the answer");
    test.browser.click("confirm-yes").await;
    test.browser.with_words("queue-row", &["held", NESTOR]).await;
    let held = ask_queue(&test.console)["entries"][0]["status"] == "held";
    assert!(held, "{}", ask_queue(&test.console));
    test.browser.shot("queue-held").await;
    test.browser.click_css(&format!("{} a", test_id("queue-row"))).await;
    test.browser.says("451 4.3.2").await;
    test.browser.shot("queue-message").await;
    test.browser.press("\u{e00c}").await;

    test.partner_says(None);
    test.browser.click("queue-select").await;
    test.browser.click("queue-release").await;
    test.browser.click("confirm-yes").await;
    test.browser.with_words("note", &["1 copy released"]).await;
    let arrival = test.arrival().await;
    assert_eq!((arrival.place, arrival.envelope.recipients[0].address.to_string()), ("partner", NESTOR.to_owned()));
    let rows = format!("return document.querySelectorAll('{}').length === 0", test_id("queue-row"));
    test.browser.until("an empty queue", &rows).await;
    test.browser.shot("queue-empty").await;

    // What became of it. What was said of the queue does not lie over it.
    test.go("trace").await;
    test.browser.until("the view", "return document.querySelector('[data-view=trace]') !== null").await;
    assert_eq!(test.browser.script("return document.querySelectorAll('.note').length").await, 0);
    test.browser.fill("trace-to", NESTOR).await;
    test.browser.click("trace-search").await;
    for words in [&["RECEIVE", "own-servers"][..], &["DEFER", "taking stock"], &["SEND", "to-partner"]] {
        test.browser.with_words("trace-event", words).await;
    }
    test.browser.shot("trace").await;

    // The other ends: one that is all right, and one that is away.
    test.go("connectors").await;
    test.browser.click_css(&format!("{} {}", test_id("connector-to-cloud"), test_id("connector-test"))).await;
    test.browser.with_words("connector-to-cloud", &["Mail would flow", demo::CLOUD]).await;
    test.world.partner.as_ref().unwrap().go_away(true);
    test.browser.click_css(&format!("{} {}", test_id("connector-to-partner"), test_id("connector-test"))).await;
    test.browser.with_words("connector-to-partner", &["Mail would not flow"]).await;
    test.browser.show(&test_id("connector-to-partner")).await;
    test.browser.shot("connectors").await;

    // What would become of a message.
    test.go("explain").await;
    test.browser.fill("explain-from", ERIN).await;
    test.browser.fill("explain-to", "david@contoso.com\nkate@contoso.com\nnobody@contoso.com").await;
    test.browser.click("explain-go").await;
    test.browser.with_words("explain-copy", &["to-cloud"]).await;
    test.browser.with_words("explain-copy", &["to-internet", "kate@fabrikam.com"]).await;
    test.browser.says("no such recipient").await;
    test.browser.shot("explain").await;

    test.go("flow").await;
    test.browser.with_words("flow-band", &["to-partner"]).await;
    let before = test.browser.script("return getComputedStyle(document.body).backgroundColor").await;
    test.browser.press("d").await;
    let other = format!("return getComputedStyle(document.body).backgroundColor !== {before}");
    test.browser.until("the other theme", &other).await;
    test.browser.shot("flow-other-theme").await;
    test.finish().await;
}

/// The selector of a band that leads to this connector.
fn band_to(connector: &str) -> String {
    format!("{}[aria-label*='→ {connector}']", test_id("flow-band"))
}

fn ask_queue(console: &Console) -> serde_json::Value {
    let token = format!("Authorization: Bearer {}\r\n", console.token);
    ask(console.address, "GET", "/api/v1/queue", &token, "")
}

/// Strangers choose addresses, fields and replies, and what they choose is shown as text and does nothing. S-094.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markup_in_mail_is_text() {
    let Some(mut test) = Test::start("markup").await else { return };
    test.sign_in().await;
    let image = "<img src=x onerror=window.ran=1>";
    let sender = format!("\"{image}\"@fabrikam.com");
    let recipient = "\"<svg onload=window.ran=2>\"@adatum.com";
    let reply = "\"><script>window.ran=3</script><img src=y onerror=window.ran=4>";
    let text = format!(
        "From: \"{image}\" <erin@fabrikam.com>\r\nTo: <julie@contoso.com>\r\nSubject: \"><script>window.ran=5</script>\r\n\
         Message-ID: <<img/src=z/onerror=window.ran=6>@fabrikam.com>\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\n{image}\r\n"
    );
    test.partner_says(Some(reply));
    test.send_from_inside(&sender, &[recipient], &text).await;
    let shown = [image, "onload=window.ran=2", "<script>window.ran=3"];

    for (view, expected) in [("flow", &[][..]), ("queue", &shown[..2]), ("connectors", &shown[2..])] {
        test.go(view).await;
        for words in expected {
            test.browser.says(words).await;
        }
        test.browser.shot(view).await;
        harmless(&mut test).await;
    }
    test.go("queue").await;
    test.browser.click_css(&format!("{} a", test_id("queue-row"))).await;
    test.browser.says("onerror=window.ran=6").await;
    test.browser.says("<script>window.ran=3").await;
    test.browser.shot("queue-message").await;
    harmless(&mut test).await;

    test.go("flow").await;
    test.browser.with_words("flow-band", &["to-partner"]).await;
    test.browser.click_css(&band_to("to-partner")).await;
    test.browser.with_words("flow-message", &[image]).await;
    test.browser.shot("flow-messages").await;
    harmless(&mut test).await;

    test.go("trace").await;
    test.browser.fill("trace-to", recipient).await;
    test.browser.click("trace-search").await;
    for words in [image, "onload=window.ran=2", "<script>window.ran=3", "onerror=window.ran=6"] {
        test.browser.says(words).await;
    }
    test.browser.shot("trace").await;
    harmless(&mut test).await;

    // Somebody copies it into the other forms, and into the address.
    test.go("explain").await;
    test.browser.fill("explain-from", &sender).await;
    test.browser.fill("explain-to", "julie@contoso.com").await;
    test.browser.click("explain-go").await;
    test.browser.with_words("explain-copy", &["to-on-premises"]).await;
    test.browser.shot("explain").await;
    harmless(&mut test).await;
    assert_eq!(test.browser.complaints().await, Vec::<String>::new());

    // Had it been taken for markup, that would have been seen here; and the policy would still have stopped it.
    let careless = format!("document.body.insertAdjacentHTML('beforeend', {})", json!(image));
    test.browser.script(&careless).await;
    let end = Instant::now() + PATIENCE;
    while !test.browser.complaints().await.iter().any(|line| line.contains("Content Security Policy")) {
        assert!(Instant::now() < end, "the browser says nothing of a handler in markup");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(test.browser.script("return window.ran ?? null").await, json!(null));
    test.world.stop().await;
}

/// Nothing of it ran, and nothing of it became an element.
async fn harmless(test: &mut Test) {
    let found = "return [window.ran ?? null, document.querySelectorAll('img, body script, svg[onload]').length]";
    assert_eq!(test.browser.script(found).await, json!([null, 0]));
}

/// On a phone nothing stands beside the screen, and everything is in reach.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_fits_a_phone() {
    let Some(mut test) = Test::start("phone").await else { return };
    test.browser.screen(390, 844, true).await;
    test.partner_says(Some("we are taking stock, come again"));
    test.send_from_outside(ERIN, &[JULIE, DAVID, "kate@contoso.com"], "Lunch on Friday?").await;
    test.send_from_inside(JULIE, &[NESTOR], &content(JULIE, &[NESTOR], "Delivery dates", "dates")).await;
    test.browser.open(&format!("http://{}/", test.console.address)).await;
    test.browser.find(&test_id("login")).await;
    test.browser.shot("token").await;
    fits(&mut test, "token").await;
    test.sign_in().await;
    for (view, there) in [
        ("flow", test_id("flow-band")),
        ("connectors", test_id("connector-to-partner")),
        ("queue", test_id("queue-row")),
        ("trace", test_id("trace-search")),
        ("explain", test_id("explain-go")),
        ("load", format!("{} canvas", test_id("load-chart"))),
    ] {
        test.go(view).await;
        test.browser.find(&there).await;
        test.browser.shot(view).await;
        fits(&mut test, view).await;
    }
    test.go("trace").await;
    test.browser.fill("trace-to", NESTOR).await;
    test.browser.click("trace-search").await;
    test.browser.with_words("trace-event", &["DEFER"]).await;
    test.browser.shot("trace-found").await;
    fits(&mut test, "trace").await;
    test.go("explain").await;
    test.browser.fill("explain-from", ERIN).await;
    test.browser.fill("explain-to", "sales@contoso.com").await;
    test.browser.click("explain-go").await;
    test.browser.with_words("explain-copy", &["to-cloud"]).await;
    test.browser.shot("explain-found").await;
    fits(&mut test, "explain").await;
    test.finish().await;
}

async fn fits(test: &mut Test, view: &str) {
    let width = test.browser.script("return document.documentElement.scrollWidth").await;
    assert!(width.as_u64().unwrap() <= 390, "{view} is {width} wide");
}

/// Without a mouse: a key for each view, the question mark tells them, and the focus can be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keyboard_is_enough() {
    let Some(mut test) = Test::start("keyboard").await else { return };
    test.partner_says(Some("we are taking stock, come again"));
    test.send_from_inside(JULIE, &[NESTOR], &content(JULIE, &[NESTOR], "Delivery dates", "dates")).await;
    // A colleague's link survives the sign-in.
    test.browser.open(&format!("http://{}/#/trace?to={NESTOR}", test.console.address)).await;
    test.browser.until("the field has the focus", "return document.activeElement?.dataset.testid === 'token'").await;
    let token = test.console.token.clone();
    test.browser.fill("token", &format!("{token}\u{e007}")).await;
    test.browser.find(&test_id("health")).await;
    for (keys, view) in
        [("gc", "connectors"), ("gq", "queue"), ("gt", "trace"), ("ge", "explain"), ("gl", "load"), ("gf", "flow")]
    {
        test.browser.press(keys).await;
        test.browser.until(view, &format!("return location.hash.startsWith('#/{view}')")).await;
    }
    // From band to band, and the messages in one.
    test.browser.with_words("flow-band", &["to-partner"]).await;
    test.browser.press("/").await;
    let focused = "return document.activeElement?.getAttribute('aria-label') ?? ''";
    let first = test.browser.until("a band has the focus", focused).await;
    test.browser.client.active_element().await.unwrap().send_keys("\u{e014}").await.unwrap();
    test.browser
        .until(
            "the next band has it",
            &format!("return document.activeElement?.getAttribute('aria-label') !== {first}"),
        )
        .await;
    test.browser.shot("band").await;
    test.browser.client.active_element().await.unwrap().send_keys("\u{e007}").await.unwrap();
    test.browser.with_words("flow-message", &[NESTOR]).await;
    test.browser.press("\u{e00c}").await;
    test.browser.until("it is closed", "return !document.querySelector('[data-testid=drawer]')").await;
    test.browser.press("?").await;
    test.browser.find("dialog[open]").await;
    test.browser.shot("keys").await;
    test.browser.find("dialog[open] button").await.send_keys("\u{e00c}").await.unwrap();
    test.browser.until("it is closed", "return !document.querySelector('dialog[open]')").await;
    test.browser.press("gt").await;
    test.browser.find(&test_id("trace-search")).await;
    test.browser.press("/").await;
    test.browser.until("a field has the focus", "return document.activeElement?.matches('input')").await;
    let outline = "const style = getComputedStyle(document.activeElement);\
                   return style.outlineStyle !== 'none' || style.boxShadow !== 'none'";
    assert_eq!(test.browser.script(outline).await, json!(true), "the focus is to be seen");
    test.browser.shot("focus").await;
    test.finish().await;
}

/// What the README promises to whoever tries it: an address to open, and within a minute a picture that lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_opens_on_a_living_picture() {
    let Some(mut browser) = Browser::start("demo").await else { return };
    let mut demo = Demo::start();
    let address = demo.line_with("#token=");
    browser.open(address.trim()).await;
    browser.find(&test_id("health")).await;
    browser.until("the token has gone from the address", "return !location.href.includes('token')").await;
    for words in [
        &["to-on-premises", "delivered"][..],
        &["to-cloud", "delivered"],
        &["to-internet", "delivered"],
        &["to-partner", "deferred"],
        &["not in the directory", "failed"],
    ] {
        browser.with_words("flow-band", words).await;
    }
    let apart = "const columns = {};
        for (const one of document.querySelectorAll('.node rect')) {
            const box = one.getBoundingClientRect();
            (columns[Math.round(box.left)] ??= []).push(box);
        }
        return Object.values(columns).every((column) => column
            .sort((one, other) => one.top - other.top)
            .every((box, at) => at === 0 || box.top - column[at - 1].bottom > 24));";
    browser.until("each node has room for its label", apart).await;
    browser.shot("flow").await;
    // Not in the history either.
    browser.client.refresh().await.unwrap();
    browser.find(&test_id("health")).await;
    assert!(!browser.client.current_url().await.unwrap().as_str().contains("token"));
    browser.click("nav-queue").await;
    browser.with_words("queue-row", &["to-partner", "deferred"]).await;
    browser.shot("queue").await;
    // The charts are drawn: each has a line, and the grid alone has no colour.
    browser.click("nav-load").await;
    let drawn = format!(
        "const coloured = canvas => {{\
             const {{data}} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);\
             for (let at = 0; at < data.length; at += 4) {{\
                 const [red, green, blue, alpha] = data.slice(at, at + 4);\
                 if (alpha > 200 && Math.max(red, green, blue) - Math.min(red, green, blue) > 60) return true;\
             }}\
             return false;\
         }};\
         const all = [...document.querySelectorAll('{} canvas')];\
         return all.length === 3 && all.every(coloured)",
        test_id("load-chart")
    );
    browser.until("a line on each of three charts", &drawn).await;
    browser.shot("load").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    demo.line_with("trickle: ");
    demo.stop();
}

/// The configuration that a living world runs with is one that `check` lets pass, and the command line finds its daemon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_world_is_one_like_any_other() {
    let scratch = Scratch::new();
    let world = World::start(Plan { living: true, ..Plan::new(scratch.path()) }).await.unwrap();
    for command in ["check", "status"] {
        let output = run(causeway().arg("-c").arg(scratch.file("causeway.toml")).arg(command), PATIENCE);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(0), "{command}: {text}");
        assert!(!text.contains("warning") && text.contains("to-partner") == (command == "status"), "{command}: {text}");
    }
    world.stop().await;
}

/// `causeway demo`, into a pipe.
struct Demo {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Demo {
    fn start() -> Self {
        let mut child = causeway().arg("demo").stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (said, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Self { child, lines }
    }

    fn line_with(&self, words: &str) -> String {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("no line with {words:?}: {error}"));
            if line.contains(words) {
                return line;
            }
        }
    }

    fn stop(&mut self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        let child = &mut self.child;
        wait_until("the demo ends", PATIENCE, || child.try_wait().unwrap().is_some_and(|status| status.success()));
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
