//! The clients: they offer their messages until each recipient was acknowledged or refused for good, and remember
//! exactly what they heard. Some are slow, some leave at the worst moment.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use super::oracle::{Attempt, Verdict};
use super::world::{Bite, World, chance};
use crate::tls::wire::Wire;

/// What one client still has to send.
pub struct Letter {
    /// The domains of its recipients, one for each.
    pub to: Vec<&'static str>,
    /// Bytes of content, about.
    pub size: usize,
    /// From `<>`.
    pub null: bool,
    /// When it begins.
    pub after: Duration,
}

/// Where a client leaves without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    Never,
    InTheEnvelope,
    InTheContent,
    BehindTheDot,
}

/// How a client offers a message this time.
struct Manner {
    leaves: Leaves,
    pipelines: bool,
    chunks: bool,
    /// Bytes between two pauses.
    slow: Option<usize>,
}

impl Manner {
    fn draw(world: &World) -> Self {
        let rude = world.rudeness();
        let leaves = match fastrand::u8(0..100) {
            at if at >= rude => Leaves::Never,
            at if at % 3 == 0 => Leaves::InTheEnvelope,
            at if at % 3 == 1 => Leaves::InTheContent,
            _ => Leaves::BehindTheDot,
        };
        Self {
            leaves,
            pipelines: chance(60),
            chunks: chance(40),
            slow: chance(rude / 2).then(|| fastrand::usize(1..400)),
        }
    }
}

/// Offers one message until it is taken.
pub async fn send(world: Arc<World>, mut letter: Letter) {
    sleep(letter.after).await;
    while !letter.to.is_empty() {
        let sent = offer(&world, &mut letter).await;
        if letter.to.is_empty() {
            break;
        }
        let _ = sent;
        sleep(Duration::from_secs(fastrand::u64(20..300))).await;
    }
    world.client_is_done();
}

struct Dialogue {
    wire: Wire,
    unread: Vec<u8>,
}

impl Dialogue {
    async fn reply(&mut self, patience: Duration) -> io::Result<(u16, String)> {
        timeout(patience, self.whole_reply()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn whole_reply(&mut self) -> io::Result<(u16, String)> {
        let mut all = String::new();
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
                self.unread.drain(..end + 2);
                all.push_str(&line);
                all.push('\n');
                if line.as_bytes().get(3) != Some(&b'-') {
                    let code = line.get(..3).and_then(|code| code.parse().ok()).unwrap_or(0);
                    return Ok((code, all));
                }
                continue;
            }
            let mut block = [0; 2048];
            match self.wire.read(&mut block).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.unread.extend_from_slice(&block[..count]),
            }
        }
    }

    async fn say(&mut self, text: &str) -> io::Result<()> {
        self.wire.write_all(text.as_bytes()).await
    }
}

const PATIENCE: Duration = Duration::from_secs(300);

/// RFC 5321 section 4.5.3.2.6.
const PATIENCE_AT_THE_END: Duration = Duration::from_secs(600);

async fn offer(world: &Arc<World>, letter: &mut Letter) -> io::Result<()> {
    let manner = Manner::draw(world);
    let mut talk = Dialogue { wire: world.connect_to_relay().await?, unread: Vec::new() };
    if talk.reply(PATIENCE).await?.0 != 220 {
        return Ok(());
    }
    talk.say("EHLO client.example\r\n").await?;
    let (code, offers) = talk.reply(PATIENCE).await?;
    if code != 250 {
        return Ok(());
    }
    let (number, sender, names) = begin(world, letter);
    let from = sender.as_deref().unwrap_or_default();
    let mut commands = vec![format!("MAIL FROM:<{from}> BODY=8BITMIME\r\n")];
    let mut tell = Vec::new();
    for name in &names {
        let notify = match fastrand::u8(0..10) {
            0 if offers.contains("DSN") => " NOTIFY=NEVER",
            1 if offers.contains("DSN") => " NOTIFY=SUCCESS,FAILURE,DELAY",
            _ => "",
        };
        tell.push(notify != " NOTIFY=NEVER");
        commands.push(format!("RCPT TO:<{name}>{notify}\r\n"));
    }
    let chunks = manner.chunks && offers.contains("CHUNKING");
    let mut accepted = Vec::new();
    let mut from_code = 0;
    if manner.pipelines {
        talk.say(&commands.concat()).await?;
    }
    for (index, command) in commands.iter().enumerate() {
        if !manner.pipelines {
            talk.say(command).await?;
        }
        if manner.leaves == Leaves::InTheEnvelope && chance(40) {
            world.oracle().count("a client left in the envelope");
            return Ok(());
        }
        let (code, said) = talk.reply(PATIENCE).await?;
        match (index, code) {
            (0, code) => from_code = code,
            (index, 250) => {
                accepted.push(index - 1);
                let mut oracle = world.oracle();
                oracle.attempts[number].recipients.insert(names[index - 1].clone(), tell[index - 1]);
            }
            (_, 452) => world.oracle().count("there were too many recipients"),
            (_, code) if from_code == 250 && code / 100 == 5 => {
                world.oracle().fault(format!("attempt {number}: a recipient was refused: {said}"));
            }
            _ => {}
        }
        if code == 421 {
            return Ok(());
        }
    }
    if from_code / 100 == 4 {
        world.oracle().count("452 at MAIL");
    }
    if accepted.is_empty() {
        let _ = talk.say("QUIT\r\n").await;
        return Ok(());
    }
    let content = world.oracle().attempts[number].content.clone();
    let mut wire = if chunks {
        let mut all = format!("BDAT {} LAST\r\n", content.len()).into_bytes();
        all.extend_from_slice(&content);
        all
    } else {
        talk.say("DATA\r\n").await?;
        if talk.reply(PATIENCE).await?.0 != 354 {
            return Ok(());
        }
        stuff(&content)
    };
    if manner.leaves == Leaves::InTheContent {
        world.oracle().count("a client left in the content");
        wire.truncate(fastrand::usize(..wire.len()));
        talk.wire.write_all(&wire).await?;
        return Ok(());
    }
    let last = wire.split_off(wire.len() - 1);
    match manner.slow {
        Some(piece) => {
            // In ten minutes at most.
            let piece = piece.max(wire.len() / 100);
            for piece in wire.chunks(piece) {
                talk.wire.write_all(piece).await?;
                sleep(Duration::from_secs(fastrand::u64(0..6))).await;
            }
        }
        None => talk.wire.write_all(&wire).await?,
    }
    // From here on it may be taken.
    world.oracle().attempts[number].complete = true;
    let early = world.is_early();
    world.oracle().attempts[number].early |= early;
    talk.wire.write_all(&last).await?;
    if manner.leaves == Leaves::BehindTheDot {
        world.oracle().count("a client left behind the dot");
        sleep(Duration::from_millis(fastrand::u64(0..500))).await;
        return Ok(());
    }
    let (code, said) = talk.reply(PATIENCE_AT_THE_END).await?;
    {
        let mut oracle = world.oracle();
        oracle.note(format_args!("attempt {number} was answered {}", said.trim_end()));
        oracle.attempts[number].answered = Some(Instant::now());
        oracle.attempts[number].verdict = match code {
            250 if world.plan.bite == Some(Bite::Denies) => Verdict::Refused(451),
            250 => Verdict::Accepted,
            code => Verdict::Refused(code),
        };
        match code {
            250 => {}
            451 if said.contains("too long") => oracle.count("it took too long, and was taken back"),
            400..500 => oracle.count("a message was refused for now"),
            _ => oracle.fault(format!("attempt {number} was refused for good: {said}")),
        }
    }
    if code == 250 {
        let mut index = 0;
        letter.to.retain(|_| {
            let keep = !accepted.contains(&index);
            index += 1;
            keep
        });
    }
    if chance(70) {
        let _ = talk.say("QUIT\r\n").await;
        let _ = talk.reply(Duration::from_secs(5)).await;
    }
    Ok(())
}

/// A new attempt: its number stands wherever it may be looked for.
fn begin(world: &World, letter: &Letter) -> (usize, Option<String>, Vec<String>) {
    let early = world.is_early();
    let mut oracle = world.oracle();
    let number = oracle.attempts.len();
    let sender = (!letter.null).then(|| format!("s{number}@sender.example"));
    let names: Vec<String> =
        letter.to.iter().enumerate().map(|(index, domain)| format!("r{number}.{index}@{domain}")).collect();
    let attempt = Attempt {
        sender: sender.clone(),
        recipients: BTreeMap::new(),
        content: content(number, letter.size),
        verdict: Verdict::Unknown,
        complete: false,
        early,
        excused: false,
        began: Instant::now(),
        answered: None,
    };
    if attempt.content.len() as u64 > world.plan.large_at {
        oracle.count("a message was large");
    }
    oracle.note(format_args!("attempt {number} begins, for {names:?}, {} bytes", attempt.content.len()));
    oracle.attempts.push(attempt);
    (number, sender, names)
}

fn content(number: usize, size: usize) -> Vec<u8> {
    let mut content =
        format!("From: someone@sender.example\r\nX-Attempt: {number}\r\nSubject: {number}\r\n\r\n").into_bytes();
    while content.len() < size {
        match fastrand::u8(0..6) {
            0 => content.extend_from_slice(b".\r\n"),
            1 => content.extend_from_slice(b"..two dots\r\n"),
            2 => content.extend_from_slice(b"\r\n"),
            3 => content.extend_from_slice("h\u{e9}llo\r\n".as_bytes()),
            _ => {
                let length = fastrand::usize(1..(size / 2).clamp(2, 900));
                content.extend(std::iter::repeat_with(|| fastrand::u8(b'!'..=b'~')).take(length));
                content.extend_from_slice(b"\r\n");
            }
        }
    }
    content
}

/// As DATA has it, with the end.
fn stuff(content: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(content.len() + 64);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    wire.extend_from_slice(b".\r\n");
    wire
}
