//! A headless Chromium, driven over WebDriver: what the console's tests look through.
//!
//! It has a profile of its own, which goes with it, and its process group ends with the test, also when that fails. What
//! it logs is an error of the page. Pictures of each step stay in `target/console-screenshots`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

use crate::common::PATIENCE;

/// How often something is looked for that is not there yet.
const LOOK: Duration = Duration::from_millis(40);

/// Set to anything: on a machine without a browser the tests that need one are left out.
const WITHOUT: &str = "CAUSEWAY_WITHOUT_BROWSER";

/// A browser is as much as a small machine can bear at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

pub struct Browser {
    pub client: Client,
    driver: Driver,
    test: &'static str,
    shots: usize,
    _profile: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// A running chromedriver.
struct Driver {
    child: Child,
    address: SocketAddr,
}

impl Driver {
    fn start(program: &Path) -> Self {
        // Also when the test is killed, the shell's input ends, and then all of the group.
        let until_the_end = "\"$0\" --port=0 & read -r _; kill -KILL 0";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", until_the_end]).arg(program).process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok())
            .expect("chromedriver says on which port it listens");
        // What it says later is read and forgotten: a full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The browser is in its group.
        let _ = killpg(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    names
        .iter()
        .find_map(|name| std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.exists()))
}

impl Browser {
    /// A new one with an empty page. `None`: there is none here, and somebody said that this is all right.
    pub async fn start(test: &'static str) -> Option<Self> {
        let (driver, chromium) =
            (program(&["chromedriver"]), program(&["chromium", "chromium-browser", "google-chrome"]));
        let (Some(driver), Some(chromium)) = (driver, chromium) else {
            assert!(
                std::env::var_os(WITHOUT).is_some(),
                "chromium or chromedriver is missing: scripts/test installs what the tests need ({WITHOUT}=1 leaves \
                 these out)"
            );
            eprintln!("{test}: SKIPPED, there is no chromium with chromedriver and {WITHOUT} is set");
            return None;
        };
        let alone = ONE_AT_A_TIME.lock().await;
        let profile = tempfile::Builder::new().prefix("causeway-browser-").tempdir().unwrap();
        let driver = Driver::start(&driver);
        let mut arguments: Vec<String> = [
            "--headless",
            // Root may not have the sandbox, and in a container everybody is root.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
        ]
        .map(str::to_owned)
        .into();
        arguments.push(format!("--user-data-dir={}", profile.path().display()));
        let wanted = json!({
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
        });
        let Value::Object(wanted) = wanted else { unreachable!("it is written above") };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(wanted).connect(&format!("http://{}", driver.address)).await.unwrap();
        Some(Self { client, driver, test, shots: 0, _profile: profile, _alone: alone })
    }

    pub async fn open(&self, address: &str) {
        self.client.goto(address).await.unwrap();
    }

    /// What a script gives: its source is the body of a function.
    pub async fn script(&self, source: &str) -> Value {
        self.client.execute(source, Vec::new()).await.unwrap_or_else(|error| panic!("{error}: {source}"))
    }

    /// Looks again and again, until the script gives something that is neither null, false, 0 nor empty.
    pub async fn until(&mut self, what: &str, source: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            // While a page is loading there may be nothing to run it in.
            if let Ok(value) = self.client.execute(source, Vec::new()).await
                && !matches!(&value, Value::Null | Value::Bool(false))
                && value != json!(0)
                && value != json!("")
                && value != json!([])
            {
                return value;
            }
            if Instant::now() > end {
                self.give_up(what).await;
            }
            sleep(LOOK).await;
        }
    }

    /// The text of the page contains this, sooner or later.
    pub async fn says(&mut self, text: &str) {
        let source = format!("return document.body.innerText.includes({})", json!(text));
        self.until(&format!("the page says {text:?}"), &source).await;
    }

    /// The text of the first element with this `data-testid` that contains all these words.
    pub async fn with_words(&mut self, name: &str, words: &[&str]) -> String {
        let source = format!(
            "return [...document.querySelectorAll('[data-testid={name:?}]')]\
             .map(one => one.textContent + ' ' + (one.getAttribute('aria-label') ?? ''))\
             .find(text => {}.every(word => text.includes(word)))",
            json!(words)
        );
        self.until(&format!("{name} with {words:?}"), &source).await.as_str().unwrap().to_owned()
    }

    /// The first element of this CSS selector, once it is there to be seen.
    pub async fn find(&mut self, css: &str) -> Element {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(element) = self.client.find(Locator::Css(css)).await
                && element.is_displayed().await.unwrap_or(false)
            {
                return element;
            }
            if Instant::now() > end {
                self.give_up(&format!("{css} to be seen")).await;
            }
            sleep(LOOK).await;
        }
    }

    /// Clicks it, as soon as it lets itself be clicked: nothing lies over it, and it is not made anew just then.
    pub async fn click_css(&mut self, css: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let element = self.find(css).await;
            match element.click().await {
                Ok(()) => return,
                Err(error) if Instant::now() > end => self.give_up(&format!("a click on {css}: {error}")).await,
                Err(_) => sleep(LOOK).await,
            }
        }
    }

    /// The same by its `data-testid`.
    pub async fn click(&mut self, name: &str) {
        self.click_css(&test_id(name)).await;
    }

    /// Empties the field with this `data-testid` and types into it.
    pub async fn fill(&mut self, name: &str, text: &str) {
        let field = self.find(&test_id(name)).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Keys for the page as a whole.
    pub async fn press(&mut self, keys: &str) {
        self.find("body").await.send_keys(keys).await.unwrap();
    }

    /// Brings it into the middle of the window.
    pub async fn show(&mut self, css: &str) {
        self.find(css).await;
        self.script(&format!("document.querySelector({}).scrollIntoView({{block: 'center'}})", json!(css))).await;
    }

    /// Keeps a picture of what is to be seen now.
    pub async fn shot(&mut self, what: &str) {
        self.shots += 1;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("console-screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        let picture = self.client.screenshot().await.unwrap();
        std::fs::write(folder.join(format!("{}-{:02}-{what}.png", self.test, self.shots)), picture).unwrap();
    }

    /// What the browser logged since it was asked last, from warnings on: failed requests, exceptions, violations of the
    /// content security policy, and what the page itself complains of.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.command("se/log", &json!({"type": "browser"})).await;
        let entries = entries.as_array().unwrap_or_else(|| panic!("{entries}"));
        let text =
            |entry: &Value| format!("{} {}", entry["level"].as_str().unwrap(), entry["message"].as_str().unwrap());
        entries.iter().map(text).filter(|line| line.starts_with("SEVERE") || line.starts_with("WARNING")).collect()
    }

    /// The page is as wide as this screen, and as high.
    pub async fn screen(&self, width: u32, height: u32, mobile: bool) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics});
        self.command("goog/cdp/execute", &command).await;
    }

    /// A command that only this driver knows.
    async fn command(&self, path: &str, body: &Value) -> Value {
        let session = self.client.session_id().await.unwrap().unwrap();
        let path = format!("/session/{session}/{path}");
        let mut answer = ask(self.driver.address, "POST", &path, "", &body.to_string());
        answer["value"].take()
    }

    async fn give_up(&mut self, what: &str) -> ! {
        self.shot("failed").await;
        let text = self.script("return location.href + '\\n' + document.body.innerText").await;
        panic!("waited in vain: {what}\n{}\n{:#?}", text.as_str().unwrap_or_default(), self.complaints().await);
    }
}

/// The CSS selector of a `data-testid`.
pub fn test_id(name: &str) -> String {
    format!("[data-testid={name:?}]")
}

/// One HTTP request with JSON, and the JSON that comes back. `fields` end in CRLF.
pub fn ask(address: SocketAddr, method: &str, path: &str, fields: &str, body: &str) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{fields}\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    // chromedriver keeps connections open whatever is asked of it: the length says where the answer ends.
    let mut answer = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while answer.read_line(&mut line).unwrap() > 0 && !line.trim_end().is_empty() {
        if let Some((_, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body).unwrap();
    serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {}", body.escape_ascii()))
}
