//! Smoothness as far as it can be counted: what is drawn when nothing changes, under a flood, and for a key in a flood.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, bounded};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::{
    Terminal,
    backend::{Backend, ClearType, TestBackend, WindowSize},
    buffer::Cell,
    layout::{Position, Size},
};
use vmscope::{
    app::{
        console::{Console, Input},
        event_loop::{Loop, Setup},
    },
    engine::{
        command::{Command, Done, Engine, Leaving, Request},
        snapshot::{Capability, Counters, Part, Process, Snapshot, Status},
    },
};

#[path = "smooth/history.rs"]
mod history;

/// Frames a second, as the program promises.
const RATE: u64 = 30;

/// A screen that counts its frames.
struct Counting {
    screen: TestBackend,
    frames: Arc<AtomicU64>,
    unheard: Arc<Unheard>,
}

/// Frames while a key has been pressed and its command has not come.
#[derive(Default)]
struct Unheard {
    /// Where the command is to come, while it is waited for.
    requests: Mutex<Option<Receiver<Request>>>,
    frames: AtomicU64,
}

impl Backend for Counting {
    type Error = Infallible;

    fn draw<'a, I: Iterator<Item = (u16, u16, &'a Cell)>>(&mut self, content: I) -> Result<(), Infallible> {
        self.screen.draw(content)
    }

    fn hide_cursor(&mut self) -> Result<(), Infallible> {
        self.screen.hide_cursor()
    }

    fn show_cursor(&mut self) -> Result<(), Infallible> {
        self.screen.show_cursor()
    }

    fn get_cursor_position(&mut self) -> Result<Position, Infallible> {
        self.screen.get_cursor_position()
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, position: P) -> Result<(), Infallible> {
        self.screen.set_cursor_position(position)
    }

    fn clear(&mut self) -> Result<(), Infallible> {
        self.screen.clear()
    }

    fn clear_region(&mut self, clear_type: ClearType) -> Result<(), Infallible> {
        self.screen.clear_region(clear_type)
    }

    fn size(&self) -> Result<Size, Infallible> {
        self.screen.size()
    }

    fn window_size(&mut self) -> Result<WindowSize, Infallible> {
        self.screen.window_size()
    }

    /// Once a frame.
    fn flush(&mut self) -> Result<(), Infallible> {
        self.frames.fetch_add(1, Ordering::SeqCst);
        if self.unheard.requests.lock().unwrap().as_ref().is_some_and(Receiver::is_empty) {
            self.unheard.frames.fetch_add(1, Ordering::SeqCst);
        }
        self.screen.flush()
    }
}

/// Keys from a channel.
struct Fingers(Receiver<Input>);

impl Console for Fingers {
    fn inputs(&self) -> &Receiver<Input> {
        &self.0
    }
}

/// The engine's side of the screen.
struct Guest {
    published: Arc<ArcSwap<Snapshot>>,
    ping: Sender<()>,
    requests: Receiver<Request>,
}

impl Guest {
    fn new() -> (Self, Engine) {
        let published = Arc::new(ArcSwap::from_pointee(picture(0)));
        let (requests, receiver) = bounded(64);
        let (ping, changed) = bounded(1);
        let engine = Engine { snapshot: Arc::clone(&published), requests, changed, leaving: Leaving::default() };
        (Self { published, ping, requests: receiver }, engine)
    }

    fn publish(&self, nth: u64) {
        self.published.store(Arc::new(picture(nth)));
        let _ = self.ping.try_send(());
    }
}

/// A picture that differs from all others.
fn picture(nth: u64) -> Snapshot {
    let process = |pid| Process { pid, name: format!("process-{nth}-{pid}"), ..Process::default() };
    Snapshot {
        status: Status::Running,
        driver: "demo",
        taken_at_ns: nth * 1_000,
        counters: Counters { events: nth, ..Counters::default() },
        capabilities: Part::new(vec![Capability::Pause]),
        processes: Part::new((0..200).map(process).collect()),
        ..Snapshot::default()
    }
}

fn key(code: KeyCode) -> Input {
    Input::Terminal(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

/// A loop on a thread of its own.
struct Run {
    keys: Sender<Input>,
    frames: Arc<AtomicU64>,
    unheard: Arc<Unheard>,
    thread: thread::JoinHandle<String>,
}

impl Run {
    fn start(engine: Engine) -> Self {
        let (keys, inputs) = bounded(1024);
        let frames = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&frames);
        let unheard = Arc::new(Unheard::default());
        let missed = Arc::clone(&unheard);
        let thread = thread::spawn(move || {
            let screen = Counting { screen: TestBackend::new(120, 40), frames: counted, unheard: missed };
            let mut terminal = Terminal::new(screen).unwrap();
            Loop::new(&mut terminal, &mut Fingers(inputs), engine, Setup::default()).run().unwrap();
            terminal.backend().screen.buffer().content.iter().map(Cell::symbol).collect()
        });
        Self { keys, frames, unheard, thread }
    }

    fn frames(&self) -> u64 {
        self.frames.load(Ordering::SeqCst)
    }

    /// Quits; answers what was on the screen in the end.
    fn end(self) -> String {
        self.keys.send(key(KeyCode::Char('q'))).unwrap();
        self.thread.join().unwrap()
    }
}

/// How many frames may have been drawn in a time: the rate, and one at each end.
fn allowed(time: Duration) -> u64 {
    time.as_millis() as u64 * RATE / 990 + 2
}

#[test]
fn what_does_not_change_is_drawn_once() {
    let (guest, engine) = Guest::new();
    let run = Run::start(engine);
    for _ in 0..1_000 {
        guest.ping.send(()).unwrap();
    }
    let frames = run.frames();
    assert!(frames <= 1, "{frames} frames of one picture");
    assert!(run.end().contains("process-0-1"));
    drop(guest);
}

#[test]
fn a_flood_of_pictures_is_drawn_at_the_rate_of_frames() {
    let (guest, engine) = Guest::new();
    let run = Run::start(engine);
    let began = Instant::now();
    let mut pictures = 0;
    while run.frames() < 10 {
        pictures += 1;
        guest.publish(pictures);
    }
    let (frames, time) = (run.frames(), began.elapsed());
    assert!(frames <= allowed(time), "{frames} frames in {time:?}");
    assert!(pictures > frames, "there were more pictures ({pictures}) than frames ({frames})");
    let last = pictures + 1;
    guest.publish(last);
    while !guest.ping.is_empty() {
        thread::yield_now();
    }
    // The last frame is of the newest picture, however many were left out.
    let end = run.end();
    assert!(end.contains(&format!("process-{last}-1")), "the newest picture is on the screen in the end");
}

#[test]
fn a_key_in_a_flood_is_answered_before_the_next_frame() {
    let (guest, engine) = Guest::new();
    let run = Run::start(engine);
    let mut pictures = 0;
    for _ in 0..3 {
        // In the middle of a flood, with a frame just behind it.
        let from = run.frames();
        while run.frames() < from + 2 {
            pictures += 1;
            guest.publish(pictures);
        }
        run.keys.send(key(KeyCode::Char('p'))).unwrap();
        *run.unheard.requests.lock().unwrap() = Some(guest.requests.clone());
        // The flood goes on until the engine has the command.
        while guest.requests.is_empty() {
            pictures += 1;
            guest.publish(pictures);
        }
        *run.unheard.requests.lock().unwrap() = None;
        let request = guest.requests.recv().unwrap();
        // The one that was under way.
        let waited = run.unheard.frames.swap(0, Ordering::SeqCst);
        assert!(matches!(request.command, Command::Pause), "{:?}", request.command);
        assert!(waited <= 1, "{waited} frames were drawn before the key was heard");
        request.answer.send(Ok(Done::Quiet)).unwrap();
    }
    run.end();
}

#[test]
fn a_flood_of_keys_is_drawn_at_the_rate_of_frames() {
    let (guest, engine) = Guest::new();
    let run = Run::start(engine);
    let began = Instant::now();
    for nth in 0..1_000 {
        run.keys.send(key(if nth % 2 == 0 { KeyCode::Down } else { KeyCode::Up })).unwrap();
    }
    run.keys.send(key(KeyCode::Char('z'))).unwrap();
    let (frames, end) = (Arc::clone(&run.frames), run.end());
    let (frames, time) = (frames.load(Ordering::SeqCst), began.elapsed());
    assert!(frames <= allowed(time), "{frames} frames in {time:?}");
    assert!(!end.contains("2 Breakpoints"), "every key was heard in the end");
    drop(guest);
}
