//! Where `ember up` speaks: plain lines, or on a terminal lines above a table that is drawn again in place.
//!
//! A thread of its own writes: a terminal that takes nothing must not hold up the control plane.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much may wait to be written; more is dropped: nobody is reading, then.
const WAITING: usize = 1024;
/// How often a table is drawn at most, in Hertz.
const DRAWS: u8 = 4;
/// How long the last lines may take.
const LAST_LINES: Duration = Duration::from_millis(500);

enum Message {
    Line(String),
    Table(Vec<String>),
    End(SyncSender<()>),
}

/// The screen. Clones are the same.
#[derive(Clone)]
pub(crate) struct Screen {
    messages: SyncSender<Message>,
    live: bool,
}

/// Whether a table can be drawn, from whether both outputs are terminals and from `NO_COLOR` and `TERM`.
fn is_live(terminals: bool, no_color: Option<&str>, term: Option<&str>) -> bool {
    let plain = no_color.is_some_and(|value| !value.is_empty());
    terminals && !plain && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

impl Screen {
    /// The process's own.
    pub(crate) fn open() -> io::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let terminals = io::stdout().is_terminal() && io::stderr().is_terminal();
        let live = is_live(terminals, variable("NO_COLOR").as_deref(), variable("TERM").as_deref());
        let (messages, waiting) = sync_channel(WAITING);
        let write = move || if live { draw(&waiting) } else { print(&waiting) };
        std::thread::Builder::new().name("screen".to_owned()).spawn(write)?;
        Ok(Self { messages, live })
    }

    /// Whether it shows tables.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Width and height of the terminal, in characters.
    pub(crate) fn size() -> (usize, usize) {
        let (height, width) = Term::stderr().size();
        (width.into(), height.into())
    }

    /// Says a line, or several.
    pub(crate) fn say(&self, line: &str) {
        let _ = self.messages.try_send(Message::Line(line.to_owned()));
    }

    /// Shows these lines in place of the last ones.
    pub(crate) fn show(&self, table: Vec<String>) {
        let _ = self.messages.try_send(Message::Table(table));
    }

    /// Writes what is waiting and takes the table away, if the terminal lets it.
    pub(crate) fn end(&self) {
        let (done, ended) = sync_channel(1);
        if self.messages.try_send(Message::End(done)).is_ok() {
            // A terminal that takes nothing is left.
            let _ = ended.recv_timeout(LAST_LINES);
        }
    }

    /// A writer for log lines, each written at once. They go to the standard error where there is no table.
    pub(crate) fn log(&self) -> Log {
        Log(self.live.then(|| self.clone()))
    }
}

/// See [`Screen::log`].
#[derive(Clone)]
pub(crate) struct Log(Option<Screen>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(screen) => screen.say(String::from_utf8_lossy(line).trim_end()),
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn print(waiting: &Receiver<Message>) {
    for message in waiting {
        match message {
            // Nobody reading is no reason to stop.
            Message::Line(line) => drop(writeln!(io::stdout(), "{line}")),
            Message::Table(_) => {}
            Message::End(done) => drop(done.try_send(())),
        }
    }
}

fn draw(waiting: &Receiver<Message>) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS));
    // It is well-formed: a template of one known key.
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        bar.set_style(style);
    }
    let mut shown = Vec::new();
    for message in waiting {
        match message {
            Message::Line(line) => bar.println(line),
            Message::Table(table) if table == shown => {}
            Message::Table(table) => {
                bar.set_message(table.join("\n"));
                shown = table;
            }
            Message::End(done) => {
                bar.finish_and_clear();
                let _ = done.try_send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_needs_a_terminal_that_can_draw_it() {
        assert!(is_live(true, None, Some("xterm")));
        assert!(is_live(true, Some(""), Some("xterm")));
        for plain in [
            is_live(false, None, Some("xterm")),
            is_live(true, Some("1"), Some("xterm")),
            is_live(true, None, Some("dumb")),
            is_live(true, None, None),
        ] {
            assert!(!plain);
        }
    }
}
