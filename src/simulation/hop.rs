//! The next hops: servers with moods. They believe what they are told and keep what they took; they refuse, stall, drop
//! and talk nonsense at any stage. They never say that they took what they did not: nobody could see through that.
//!
//! Written without the relay's own parts, so that both cannot be wrong in the same way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep};

use super::world::{Bite, World, chance};
use crate::tls::wire::Wire;

/// What may go wrong, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Ehlo,
    Mail,
    Rcpt,
    Data,
    Dot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Go,
    Later,
    Never,
    Closing,
    Hang,
    Drop,
    Reset,
    Nonsense,
    Slow,
}

/// How a host feels at the moment.
#[derive(Debug, Clone)]
pub struct Mood {
    /// Nobody listens.
    pub closed: bool,
    /// Connections are never answered.
    pub silent: bool,
    /// Of a hundred chances at each stage, so many go wrong.
    trouble: [u8; 6],
    /// In these ways.
    acts: Vec<Act>,
    /// Of a hundred messages that were taken, so many are not answered as they should be.
    mumbles: u8,
    chunking: bool,
    pipelining: bool,
    dsn: bool,
    /// No more connections at a time.
    room: usize,
    /// A kept connection is closed after so many seconds.
    patience: u64,
}

impl Mood {
    pub fn good() -> Self {
        Self {
            closed: false,
            silent: false,
            trouble: [0; 6],
            acts: Vec::new(),
            mumbles: 0,
            chunking: true,
            pipelining: true,
            dsn: true,
            room: usize::MAX,
            patience: 300,
        }
    }

    /// Drawn; `grim`: of a hundred, how bad it may become.
    pub fn draw(grim: u8) -> Self {
        let all = [
            Act::Later,
            Act::Later,
            Act::Never,
            Act::Closing,
            Act::Hang,
            Act::Drop,
            Act::Reset,
            Act::Nonsense,
            Act::Slow,
        ];
        Self {
            closed: chance(grim / 4),
            silent: chance(grim / 8),
            trouble: std::array::from_fn(|_| if chance(50) { fastrand::u8(0..=grim / 3) } else { 0 }),
            acts: (0..fastrand::usize(1..5)).map(|_| all[fastrand::usize(..all.len())]).collect(),
            mumbles: if chance(50) { fastrand::u8(0..=grim / 2) } else { 0 },
            chunking: chance(60),
            pipelining: chance(80),
            dsn: chance(70),
            room: if chance(20) { fastrand::usize(1..6) } else { usize::MAX },
            patience: if chance(50) { fastrand::u64(1..8) } else { 300 },
        }
    }

    fn act(&self, stage: Stage) -> Act {
        if self.acts.is_empty() || !chance(self.trouble[stage as usize]) {
            return Act::Go;
        }
        self.acts[fastrand::usize(..self.acts.len())]
    }
}

/// The connection is over.
struct Over;

struct Session {
    world: Arc<World>,
    place: usize,
    wire: Wire,
    unread: Vec<u8>,
    from: Option<String>,
    /// When MAIL was read.
    began: Instant,
    /// Which life of the relay speaks.
    life: u64,
    to: BTreeSet<String>,
    /// Those who were asked for in this transaction, taken or not.
    named: BTreeSet<String>,
    /// It has talked nonsense: nothing that it says afterwards need be believed.
    raves: bool,
}

/// One connection to the host at `place`.
pub async fn serve(world: Arc<World>, place: usize, life: u64, wire: Wire) {
    let session = Session {
        world,
        place,
        wire,
        unread: Vec::new(),
        from: None,
        began: Instant::now(),
        life,
        to: BTreeSet::new(),
        named: BTreeSet::new(),
        raves: false,
    };
    let world = Arc::clone(&session.world);
    world.busy[place].fetch_add(1, Ordering::Relaxed);
    let _ = session.run().await;
    world.busy[place].fetch_sub(1, Ordering::Relaxed);
}

impl Session {
    fn mood(&self) -> Mood {
        self.world.mood(self.place)
    }

    async fn run(mut self) -> Result<(), Over> {
        if self.world.busy[self.place].load(Ordering::Relaxed) > self.mood().room {
            self.world.oracle().count("a hop had its fill of connections");
            self.say("421 4.7.0 too many connections\r\n").await?;
            return Err(Over);
        }
        if !self.obey(Stage::Greeting, "220 hop ESMTP\r\n").await? {
            return Err(Over);
        }
        loop {
            let line = self.line().await?;
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let rest = rest.to_owned();
            match verb.to_ascii_uppercase().as_str() {
                "EHLO" => {
                    let mood = self.mood();
                    let mut said = "250-hop\r\n".to_owned();
                    for (is_offered, name) in
                        [(mood.pipelining, "PIPELINING"), (mood.chunking, "CHUNKING"), (mood.dsn, "DSN")]
                    {
                        if is_offered {
                            said.push_str(&format!("250-{name}\r\n"));
                        }
                    }
                    said.push_str("250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n");
                    self.obey(Stage::Ehlo, &said).await?;
                }
                "HELO" => self.say("250 hop\r\n").await?,
                "MAIL" => {
                    self.began = Instant::now();
                    self.named.clear();
                    if self.from.is_some() {
                        self.say("503 5.5.1 one at a time\r\n").await?;
                    } else if self.obey(Stage::Mail, "250 2.1.0 ok\r\n").await? {
                        self.from = Some(path(&rest));
                        self.to.clear();
                    }
                }
                "RCPT" => {
                    if self.from.is_none() {
                        self.say("503 5.5.1 who says so?\r\n").await?;
                        continue;
                    }
                    let to = path(&rest);
                    self.named.insert(to.clone());
                    let mood = self.mood();
                    match mood.act(Stage::Rcpt) {
                        Act::Never => {
                            self.world.oracle().rejected.insert(to);
                            self.say("550 5.1.1 no such mailbox\r\n").await?;
                        }
                        act => {
                            if self.act(Stage::Rcpt, act, "250 2.1.5 ok\r\n").await? {
                                self.to.insert(to);
                            }
                        }
                    }
                }
                "DATA" => {
                    if self.to.is_empty() {
                        self.say("503 5.5.1 for whom?\r\n").await?;
                    } else if self.obey(Stage::Data, "354 go on\r\n").await? {
                        let content = self.stuffed().await?;
                        self.end(content).await?;
                    }
                }
                "BDAT" => {
                    self.world.oracle().count("a message left in chunks");
                    let mut content = Vec::new();
                    let mut chunk = rest;
                    loop {
                        let size = chunk.split(' ').next().and_then(|size| size.parse().ok()).ok_or(Over)?;
                        let more = self.exactly(size).await?;
                        content.extend_from_slice(&more);
                        if chunk.to_ascii_uppercase().ends_with("LAST") {
                            break;
                        }
                        if self.to.is_empty() {
                            self.say("503 5.5.1 for whom?\r\n").await?;
                        } else {
                            self.say("250 2.0.0 go on\r\n").await?;
                        }
                        let line = self.line().await?;
                        chunk = line.split_once(' ').ok_or(Over)?.1.to_owned();
                    }
                    if self.to.is_empty() {
                        self.from = None;
                        self.say("503 5.5.1 for whom?\r\n").await?;
                    } else {
                        self.end(content).await?;
                    }
                }
                "RSET" => {
                    self.from = None;
                    self.to.clear();
                    self.say("250 2.0.0 ok\r\n").await?;
                }
                "NOOP" => self.say("250 2.0.0 ok\r\n").await?,
                "QUIT" => {
                    if chance(90) {
                        self.say("221 2.0.0 bye\r\n").await?;
                    }
                    return Ok(());
                }
                _ => self.say("500 5.5.2 what?\r\n").await?,
            }
        }
    }

    /// The whole message is here.
    async fn end(&mut self, content: Vec<u8>) -> Result<(), Over> {
        let mood = self.mood();
        let from = self.from.take().unwrap_or_default();
        let to = std::mem::take(&mut self.to);
        match mood.act(Stage::Dot) {
            Act::Go | Act::Slow => {}
            Act::Never => {
                self.world.oracle().rejected.extend(to);
                return self.say("554 5.6.0 not this one\r\n").await;
            }
            act => {
                self.act(Stage::Dot, act, "").await?;
                return Ok(());
            }
        }
        let hop = format!("hop {}", self.place);
        let number = self.take(&hop, &from, to, content);
        if chance(mood.mumbles) {
            match fastrand::u8(0..5) {
                0 => return Err(Over),
                1 => {
                    self.wire.reset();
                    return Err(Over);
                }
                2 => {
                    self.world.oracle().count("a hop fell silent after it took a message");
                    sleep(Duration::from_secs(fastrand::u64(60..1500))).await;
                }
                3 => {
                    self.nonsense().await?;
                    return Err(Over);
                }
                _ => sleep(Duration::from_secs(fastrand::u64(1..60))).await,
            }
        }
        self.world.oracle().note(format_args!("{hop} answers #{number:?}"));
        self.say("250 2.0.0 taken\r\n").await?;
        let heard = self.wire.heard();
        if let Some(number) = number.filter(|_| !self.raves) {
            self.world.oracle().deliveries[number].answer = Some(heard);
            if self.world.plan.bite == Some(Bite::Doubles) {
                self.world.oracle().repeat(number);
            }
        }
        if chance(mood.mumbles / 2) { Err(Over) } else { Ok(()) }
    }

    /// The message is here, and told of; unless the world is one of those that the oracle must see through.
    fn take(&self, hop: &str, from: &str, mut to: BTreeSet<String>, mut content: Vec<u8>) -> Option<usize> {
        let at = content.len() - 3;
        match self.world.plan.bite {
            Some(Bite::Loses) if chance(20) => return None,
            Some(Bite::Garbles) => content[at] ^= 1,
            Some(Bite::Mixes) if !from.is_empty() => {
                to.insert("r0.9@b.example".to_owned());
            }
            _ => {}
        }
        Some(self.world.oracle().deliver(hop, from, to, &content, (self.began, self.life)))
    }

    /// Says `good` unless the mood is against it. True: that is what it said.
    async fn obey(&mut self, stage: Stage, good: &str) -> Result<bool, Over> {
        let act = self.mood().act(stage);
        self.act(stage, act, good).await
    }

    async fn act(&mut self, stage: Stage, act: Act, good: &str) -> Result<bool, Over> {
        if act != Act::Go {
            self.world.oracle().note(format_args!("hop {} at {stage:?}: {act:?}", self.place));
        }
        match act {
            Act::Go => {}
            Act::Slow => sleep(Duration::from_secs(fastrand::u64(1..200))).await,
            Act::Later => {
                let said = if stage == Stage::Greeting { "421 4.3.2 not now\r\n" } else { "451 4.3.0 not now\r\n" };
                self.say(said).await?;
                return Ok(false);
            }
            // Of whom it speaks is known at RCPT and later only.
            Act::Never if matches!(stage, Stage::Data) => {
                let to = self.to.clone();
                self.world.oracle().rejected.extend(to);
                self.say("554 5.0.0 never\r\n").await?;
                return Ok(false);
            }
            Act::Never | Act::Closing => {
                self.world.oracle().count("421");
                self.say("421 4.3.2 closing\r\n").await?;
                return Err(Over);
            }
            Act::Hang => {
                self.world.oracle().count("a hop hung");
                sleep(Duration::from_secs(fastrand::u64(300..2000))).await;
                return Err(Over);
            }
            Act::Drop => return Err(Over),
            Act::Reset => {
                self.wire.reset();
                return Err(Over);
            }
            Act::Nonsense => {
                self.nonsense().await?;
                return Ok(false);
            }
        }
        self.say(good).await?;
        Ok(true)
    }

    async fn nonsense(&mut self) -> Result<(), Over> {
        self.raves = true;
        self.world.oracle().count("a hop talked nonsense");
        self.world.oracle().note(format_args!("hop {} talks nonsense", self.place));
        let choice = [
            "hello there\r\n",
            "25\r\n",
            "999 what\r\n",
            "354 go on\r\n",
            "\0\u{1}\r\n",
            "220-one\r\n250 two\r\n",
            "451-4.3.0 it\r\n451-4.3.0 goes\r\n",
        ];
        self.say(choice[fastrand::usize(..choice.len())]).await
    }

    async fn say(&mut self, text: &str) -> Result<(), Over> {
        if self.raves && text.starts_with('5') {
            // After nonsense nobody can tell what a reply is to: it may be taken for any of these.
            self.world.oracle().rejected.extend(self.named.clone());
        }
        self.wire.write_all(text.as_bytes()).await.map_err(|_| Over)
    }

    async fn more(&mut self) -> Result<(), Over> {
        let mut block = [0; 4096];
        let patience = Duration::from_secs(self.mood().patience);
        let read = tokio::time::timeout(patience, self.wire.read(&mut block)).await;
        match read {
            Ok(Ok(count)) if count > 0 => {
                self.unread.extend_from_slice(&block[..count]);
                Ok(())
            }
            _ => Err(Over),
        }
    }

    async fn line(&mut self) -> Result<String, Over> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
                self.unread.drain(..end + 2);
                return Ok(line);
            }
            self.more().await?;
        }
    }

    async fn exactly(&mut self, size: usize) -> Result<Vec<u8>, Over> {
        while self.unread.len() < size {
            self.more().await?;
        }
        Ok(self.unread.drain(..size).collect())
    }

    /// Up to the lone dot.
    async fn stuffed(&mut self) -> Result<Vec<u8>, Over> {
        let mut content = Vec::new();
        loop {
            let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") else {
                self.more().await?;
                continue;
            };
            let line: Vec<u8> = self.unread.drain(..end + 2).collect();
            if line == b".\r\n" {
                return Ok(content);
            }
            content.extend_from_slice(if line.starts_with(b".") { &line[1..] } else { &line });
        }
    }
}

/// The address in `FROM:<...>`.
fn path(rest: &str) -> String {
    let from = rest.find('<').map_or(0, |at| at + 1);
    let to = rest.find('>').unwrap_or(rest.len());
    rest.get(from..to).unwrap_or_default().to_owned()
}
