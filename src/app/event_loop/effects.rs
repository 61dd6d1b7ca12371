//! What keys ask of the program itself: themes, files, the shell, what is kept between runs.

use std::{fmt::Display, path::PathBuf, sync::Arc, time::Instant};

use ratatui::{
    Terminal,
    backend::{Backend, TestBackend},
};

use super::{Ended, Loop, Restore, THEME_LOOK};
use crate::{
    app::{
        action::Action,
        console::Console,
        export::{self, Exported},
        saved::Saved,
        screenshot::Shot,
        update::{Effect, choose, hints},
    },
    engine::{
        command::Command,
        snapshot::{BreakpointState, Status},
    },
    ui::{
        self,
        state::{Ask, Choice, Choose, Confirm, Popup, Severity, Then},
    },
};

impl<B, C> Loop<'_, B, C>
where
    B: Backend,
    B::Error: Display,
    C: Console,
{
    /// Brings back what was saved for this guest, once it is known which one it is.
    pub(super) fn restore_when_known(&mut self) {
        let live = Arc::clone(self.history.live());
        if self.restore != Restore::Wanted || matches!(live.status, Status::Attaching | Status::Lost) {
            return;
        }
        self.restore = Restore::Done;
        self.state.kept = true;
        match Saved::read(&live) {
            Ok(None) => self.state.notify(Severity::Info, "nothing is saved for this guest yet"),
            Ok(Some(saved)) => {
                saved.apply(&mut self.state);
                if let Err(why) = self.themes.choose(saved.theme()) {
                    self.state.notify(Severity::Warning, why);
                }
                for command in saved.commands(&live) {
                    self.send(command, None);
                }
            }
            Err(why) => {
                self.restore = Restore::No;
                self.state.kept = false;
                self.state.notify(Severity::Error, why);
            }
        }
        self.settle();
    }

    /// Keeps for the next run what the user has set; answers where, or says why not.
    pub(super) fn save(&mut self) -> Option<PathBuf> {
        let live = self.history.live();
        if live.status == Status::Attaching {
            self.state.notify(Severity::Warning, "nothing to save yet: the engine is still on its way into the guest");
            return None;
        }
        match Saved::of(&self.state, live, self.themes.name()).write(live) {
            Ok(path) => Some(path),
            Err(why) => {
                tracing::warn!("{why}");
                self.state.notify(Severity::Error, why);
                None
            }
        }
    }

    /// Reads the theme's file again when it was written.
    pub(super) fn look_at_theme(&mut self) {
        if !self.themes.is_from_file() || self.console.is_virtual() || self.looked.elapsed() < THEME_LOOK {
            return;
        }
        self.looked = Instant::now();
        if let Some(read) = self.themes.follow() {
            self.theme_was_read(read);
        }
    }

    pub(super) fn theme_was_read(&mut self, read: Result<(), String>) {
        match read {
            Ok(()) => {
                let text = format!("theme {}: read again", self.themes.name());
                self.state.notify(Severity::Info, text);
            }
            Err(why) => self.state.notify(Severity::Error, format!("{why}; the theme stays as it was")),
        }
        self.settle();
    }

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(command) => self.send(command, None),
                Effect::SendFrom(command, draft) => self.send(command, Some(draft)),
                Effect::Copy(text) => self.copy(&text),
                Effect::SaveCopied { file, overwrite } => self.save_copied(file, overwrite),
                Effect::Freeze => self.history.freeze(),
                Effect::Back => {
                    if !self.history.back() {
                        let why = self.history.why_no_earlier();
                        self.state.remark(why);
                    }
                }
                Effect::Forward | Effect::FarForward if self.history.past().is_none() => {
                    self.state.remark("this is the live picture already");
                }
                Effect::Forward => self.history.forward(),
                Effect::FarBack => {
                    if !self.history.far_back() {
                        let why = self.history.why_no_earlier();
                        self.state.remark(why);
                    }
                }
                Effect::FarForward => self.history.far_forward(),
                Effect::Redraw => self.redraw(Ok(true)),
                Effect::Suspend => self.suspend(),
                Effect::ChooseTheme => {
                    let (items, name) = (self.themes.list(), self.themes.name().to_owned());
                    let chosen = items.iter().position(|(item, _)| *item == name).unwrap_or(0);
                    let (title, does) = ("Theme".into(), "keep".into());
                    let choice = Choice::Theme(name);
                    self.state.popups.push(Popup::Choose(Choose { choice, title, items, chosen, does }));
                }
                Effect::Theme(name) => {
                    if let Err(why) = self.themes.choose(&name) {
                        self.state.notify(Severity::Error, format!("{why}; the theme stays as it was"));
                    }
                }
                Effect::ReloadTheme => {
                    let read = self.themes.reload();
                    self.theme_was_read(read);
                }
                Effect::Export { file, overwrite } => self.export(file, overwrite),
                Effect::SaveState => {
                    if let Some(path) = self.save() {
                        let text = format!("saved to {}; start with --restore to have it back", path.display());
                        self.state.notify(Severity::Info, text);
                    }
                }
                Effect::Leave => self.ended = Some(Ok(Ended::Done)),
            }
        }
    }

    /// Goes to the shell for a while. While this process is stopped nobody answers the guest, so the engine steps aside
    /// first; where it cannot, nothing is stopped.
    pub(super) fn suspend(&mut self) {
        let live = !self.engine_ended && !self.console.is_scripted();
        let set = self.history.live().breakpoints.iter().any(|row| row.state == BreakpointState::Active);
        let aside = if live { self.stand_by() } else { Ok(()) };
        match aside {
            Ok(()) => {
                // What is out of the guest is shown so, until it is back.
                self.digest();
                let note = match self.history.live().status {
                    Status::Paused => "vmscope is stopped and the guest stays paused; fg comes back",
                    _ if set => "vmscope is stopped and its breakpoints are out of the guest; fg puts them back",
                    _ => "",
                };
                let suspended = self.console.suspend(note);
                self.redraw(suspended);
            }
            Err(why) => self.state.notify(Severity::Error, format!("vmscope is not stopped: {why}")),
        }
        if live {
            self.send(Command::ComeBack, None);
        }
    }

    /// Sends a text to the clipboard, and says no more of it than is known.
    fn copy(&mut self, text: &str) {
        let what = self.state.copied.as_ref().map_or("a text", |copied| copied.what.as_str());
        let save = hints::key_of(&self.state, Action::SaveCopied);
        let told = match self.console.copy(text) {
            Some(way) => format!("{}; {save} writes it to a file", way.told(what)),
            None => format!("{what} went nowhere, because there is no terminal; {save} writes it to a file"),
        };
        self.state.notify(Severity::Info, told);
    }

    /// Writes what was copied to a file.
    fn save_copied(&mut self, file: String, overwrite: bool) {
        let Some(copied) = &self.state.copied else { return };
        match export::leave(&file, overwrite, format!("{}\n", copied.text).as_bytes()) {
            Ok(written) => self.tell_written(written, Then::OverwriteCopied(file)),
            Err(why) => {
                let question = choose::copied_file_question(file);
                self.state.popups.push(Popup::Ask(Ask { error: Some(why), ..question }));
            }
        }
    }

    fn tell_written(&mut self, written: Exported, then: Then) {
        match written {
            Exported::Written(path) => self.state.notify(Severity::Info, format!("wrote {}", path.display())),
            Exported::Exists(path) => self.state.popups.push(Popup::Confirm(Confirm {
                title: "Overwrite".into(),
                text: format!("{} is there already. What is in it will be lost.", path.display()),
                yes: "overwrite".into(),
                no: "keep".into(),
                chosen_yes: false,
                then,
            })),
        }
    }

    /// Writes the panes as they are, without what lies above them, to a file.
    pub(super) fn export(&mut self, file: String, overwrite: bool) {
        let notices = std::mem::take(&mut self.state.notices);
        let (columns, rows) = self.state.size;
        let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, rows));
        let (shown, state, theme) = (&self.shown, &self.state, self.themes.theme());
        let Ok(_) = terminal.draw(|frame| ui::render(frame, shown, state, theme));
        let exported =
            export::export(&file, overwrite, &Shot { buffer: terminal.backend().buffer(), snapshot: shown, theme });
        self.state.notices = notices;
        match exported {
            Ok(written) => self.tell_written(written, Then::Overwrite(file)),
            Err(why) => {
                let question = choose::file_question(file);
                self.state.popups.push(Popup::Ask(Ask { error: Some(why), ..question }));
            }
        }
    }
}
