//! What others do to the guest, and what the guest does to itself: QEMU's run state, and its events put into words.
//!
//! QEMU tells of most changes by an event, and of some not at all (a vCPU that was plugged in, a guest that was paused
//! already when it was migrated away): so it is asked as well, once a second. Whether the guest runs as far as we are
//! concerned is `control`'s business; [`Outside`] keeps what QEMU says.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{control::Control, qmp::Event};
use crate::engine::{
    driver::News,
    error::VmiError,
    snapshot::{Run, RunState, WayOn, clean},
};

/// How often QEMU is asked what it tells by no event.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// News that are kept until somebody asks for them.
const MOST_NEWS: usize = 64;
/// How long the same sentence is not said again: a disk may fail a thousand times a second.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What QEMU has said of the machine.
#[derive(Debug)]
pub(super) struct Outside {
    /// The run state when it was last asked for.
    state: RunState,
    /// The same when it was first asked for.
    found: Option<RunState>,
    /// Bytes of memory that the machine was given, when it was last asked for.
    pub(super) memory_bytes: Option<u64>,
    /// Whether the map of the guest's memory has to be read again.
    pub(super) memory_changed: bool,
    looked: Instant,
    news: VecDeque<News>,
    said: Option<(News, Instant)>,
}

impl Outside {
    pub fn new() -> Self {
        Self {
            state: RunState::Running,
            found: None,
            memory_bytes: None,
            memory_changed: false,
            looked: Instant::now(),
            news: VecDeque::new(),
            said: None,
        }
    }

    /// Keeps news until somebody asks for them.
    pub fn tell(&mut self, news: News) {
        let is_old = |(said, at): &(News, Instant)| *said == news && at.elapsed() < SAY_AGAIN;
        if news != News::Interrupted {
            if self.said.as_ref().is_some_and(is_old) {
                return;
            }
            self.said = Some((news.clone(), Instant::now()));
        }
        if self.news.back() == Some(&news) {
            return;
        }
        if self.news.len() == MOST_NEWS {
            self.news.pop_front();
        }
        self.news.push_back(news);
    }

    /// Takes an event in; answers whether QEMU should be asked how the guest is now.
    pub fn hear(&mut self, event: &Event) -> bool {
        if let Some(sentence) = sentence(event) {
            self.tell(News::Said(sentence));
        }
        match event.name.as_str() {
            "MEMORY_DEVICE_SIZE_CHANGE" => {
                self.memory_changed = true;
                true
            }
            "RESET" | "SHUTDOWN" | "POWERDOWN" | "SUSPEND" | "SUSPEND_DISK" | "WAKEUP" | "GUEST_PANICKED"
            | "WATCHDOG" | "BLOCK_IO_ERROR" | "MIGRATION" | "DEVICE_DELETED" | "ACPI_DEVICE_OST"
            | "JOB_STATUS_CHANGE" => true,
            _ => false,
        }
    }

    /// Whether QEMU has not been asked for a while.
    pub fn is_due(&self) -> bool {
        self.looked.elapsed() >= LOOK_PERIOD
    }
}

/// What an event says that the run state does not.
fn sentence(event: &Event) -> Option<String> {
    let text = |name: &str| event.data.get(name).and_then(Value::as_str).map(|text| clean(text, 60));
    Some(match event.name.as_str() {
        "POWERDOWN" => "somebody has pressed the guest's power button".to_owned(),
        "GUEST_CRASHLOADED" => "the guest's kernel has panicked and starts its crash kernel".to_owned(),
        "GUEST_PANICKED" => {
            let does = text("action").map_or_else(String::new, |action| format!(" (QEMU's action: {action})"));
            format!("the guest's kernel has panicked{does}")
        }
        "WATCHDOG" => {
            let does = text("action").map_or_else(String::new, |action| format!(" (QEMU's action: {action})"));
            format!("the guest's watchdog has expired{does}")
        }
        "BLOCK_IO_ERROR" => {
            let disk = text("device").filter(|name| !name.is_empty()).or_else(|| text("node-name"));
            let disk = disk.filter(|name| !name.is_empty()).map_or_else(String::new, |name| format!(" '{name}'"));
            let doing = if text("operation").as_deref() == Some("write") { "written" } else { "read" };
            let why = text("reason").map_or_else(String::new, |why| format!(": {why}"));
            format!("the guest's disk{disk} could not be {doing}{why}")
        }
        "MIGRATION" => format!("migration: {}", text("status")?),
        "DEVICE_DELETED" => format!("the device '{}' was unplugged", text("device")?),
        "DEVICE_UNPLUG_GUEST_ERROR" => {
            format!("the guest's system refuses to give up the device '{}'", text("device")?)
        }
        _ => return None,
    })
}

/// Whether this state of a guest that we have stopped is such that we may let it go on: it is what our stop has made of
/// it, or no state that is known to forbid it.
fn is_ours_to_end(state: &RunState) -> bool {
    matches!(state, RunState::Running | RunState::Paused | RunState::Debug | RunState::Other(_))
}

impl Control {
    /// QEMU's run state now.
    pub fn status(&mut self) -> Result<RunState, VmiError> {
        let answer = self.qmp().execute("query-status", json!({}))?;
        let Some(name) = answer.get("status").and_then(Value::as_str) else {
            return Err(VmiError::driver("asking QEMU how the guest is", "its answer names no run state"));
        };
        self.outside.state = match RunState::from_name(name) {
            // The vCPUs run in a state that is not known here.
            RunState::Other(_) if answer.get("running") == Some(&Value::Bool(true)) => RunState::Running,
            state => state,
        };
        self.outside.found.get_or_insert_with(|| self.outside.state.clone());
        Ok(self.outside.state.clone())
    }

    /// The same, with the reason for the end if QEMU has ended and told it.
    pub fn ask_status(&mut self) -> Result<RunState, VmiError> {
        let status = self.status();
        self.explained(status)
    }

    /// How the guest is, as far as we know without asking.
    pub fn run_state(&self) -> Run {
        if self.running {
            return Run::default();
        }
        match (self.foreign, self.pauses) {
            // Another's pause adds nothing to ours.
            (true, 1..) if self.outside.state == RunState::Paused => Run::PAUSED_BY_US,
            // The state that was asked for last may be that of before its end.
            (true, _) if self.outside.state == RunState::Running => Run::foreign(RunState::Paused),
            (true, _) => Run::foreign(self.outside.state.clone()),
            (false, 0) => Run::default(),
            (false, _) => Run::PAUSED_BY_US,
        }
    }

    /// What has happened from outside since the last call.
    pub fn take_news(&mut self) -> Vec<News> {
        self.outside.news.drain(..).collect()
    }

    /// Asks QEMU what it tells by no event: how the guest is, and what was plugged in or out.
    pub fn look_around(&mut self) -> Result<(), VmiError> {
        self.outside.looked = Instant::now();
        match self.status()? {
            RunState::Running => {
                if !self.running && (self.foreign || self.stub.is_none()) {
                    self.set_running_by_others()?;
                }
            }
            // With the stub, a stop reply comes or has come; without, this is ours if we know of it.
            RunState::Paused | RunState::Debug if !self.running || self.stub.is_some() => {}
            _ => {
                self.running = false;
                if !self.foreign {
                    self.foreign = true;
                    self.note_foreign()?;
                }
            }
        }
        self.look_at_plugs()
    }

    /// Before a guest that we have stopped is let go on: others may have made something of it since that must stay as it
    /// is, a guest that was migrated away above all. Our claim on it ends then.
    pub fn yield_to_others(&mut self) -> Result<(), VmiError> {
        if self.running || self.foreign {
            return Ok(());
        }
        if !is_ours_to_end(&self.status()?) {
            self.foreign = true;
            self.note_foreign()?;
        }
        Ok(())
    }

    /// A guest that we leave standing because somebody else seems to have stopped it. In a state that is not known here, and
    /// was not there when we came, that is a guess, which the user must hear of.
    ///
    /// # Errors
    /// A sentence about such a state.
    pub fn leave_standing(&mut self) -> Result<(), VmiError> {
        let state = self.status()?;
        if !matches!(state, RunState::Other(_)) || self.outside.found.as_ref() == Some(&state) {
            return Ok(());
        }
        Err(VmiError::Invalid(format!(
            "the guest is left as it stands: QEMU says that it is '{}', which vmscope does not know, so it was not set \
             running; if it should run, type 'cont' in QEMU's monitor",
            state.name()
        )))
    }

    /// Refuses to step a guest that stands for more than a pause.
    pub fn may_be_stepped(&mut self) -> Result<(), VmiError> {
        let state = self.status()?;
        if is_ours_to_end(&state) {
            return Ok(());
        }
        let state = state.name().to_owned();
        Err(VmiError::Invalid(format!("the guest is not just paused (QEMU: {state}): it cannot be stepped")))
    }

    /// The user means that whoever has stopped the guest is overruled.
    pub fn overrule(&mut self) -> Result<(), VmiError> {
        let state = self.status()?;
        match state.way_on() {
            _ if state == RunState::Running => self.set_running_by_others(),
            WayOn::Refused(why) => Err(VmiError::Invalid(why.into())),
            WayOn::Wake => {
                self.guard()?;
                let woken = self.qmp().execute("system_wakeup", json!({}));
                self.explained(woken).map(drop)
            }
            WayOn::Resume => {
                self.guard()?;
                self.foreign = false;
                self.note_foreign()?;
                let ran = self.go_on();
                self.explained(ran)
            }
            // QEMU's own `cont` does more than the stub's: it takes up what had failed.
            WayOn::Start | WayOn::Retry | WayOn::Continue => {
                self.guard()?;
                let ran = self.qmp().execute("cont", json!({}));
                self.explained(ran)?;
                self.set_running_by_others()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: Value) -> Event {
        Event { name: name.to_owned(), data }
    }

    #[test]
    fn events_become_sentences() {
        let error = json!({ "device": "ide0-hd0", "operation": "write", "reason": "No space left\u{1b}[2J" });
        assert_eq!(
            sentence(&event("BLOCK_IO_ERROR", error)).as_deref(),
            Some("the guest's disk 'ide0-hd0' could not be written: No space left\u{241b}[2J")
        );
        let bare = sentence(&event("BLOCK_IO_ERROR", Value::Null));
        assert_eq!(bare.as_deref(), Some("the guest's disk could not be read"));
        let panicked = sentence(&event("GUEST_PANICKED", json!({ "action": "pause" })));
        assert_eq!(panicked.as_deref(), Some("the guest's kernel has panicked (QEMU's action: pause)"));
        for (name, data) in [("MIGRATION", json!({})), ("DEVICE_DELETED", json!(7)), ("RTC_CHANGE", json!({}))] {
            assert_eq!(sentence(&event(name, data)), None, "{name}");
        }
    }

    #[test]
    fn a_flood_of_events_is_a_sentence() {
        let mut outside = Outside::new();
        for _ in 0..10_000 {
            assert!(outside.hear(&event("BLOCK_IO_ERROR", json!({ "device": "a" }))));
        }
        assert_eq!(outside.news.len(), 1);
        for n in 0..10_000 {
            outside.tell(News::Said(n.to_string()));
            outside.tell(News::Interrupted);
        }
        assert_eq!(outside.news.len(), MOST_NEWS);
    }
}
