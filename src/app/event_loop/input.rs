//! What the console tells: keys, the mouse, the terminal's size, signals.

use std::fmt::Display;

use crokey::{KeyCombination, key};
use crossterm::event::{Event, KeyEventKind, MouseEventKind};
use ratatui::{
    backend::Backend,
    layout::{Position, Rect},
};

use super::{Ended, Loop};
use crate::app::{
    console::{Console, Input},
    keymap,
    update::{self, memory, mouse, popup},
};

impl<B, C> Loop<'_, B, C>
where
    B: Backend,
    B::Error: Display,
    C: Console,
{
    pub(super) fn input(&mut self, input: Input) {
        match input {
            Input::Terminal(Event::Key(key)) if key.kind != KeyEventKind::Release => self.press(keymap::pressed(key)),
            Input::Terminal(Event::Key(_)) => {}
            // A pointer that only passes changes nothing.
            Input::Terminal(Event::Mouse(event)) if event.kind == MouseEventKind::Moved => {}
            Input::Terminal(Event::Mouse(event)) => {
                let now = self.began.elapsed();
                let effects = mouse::mouse(&mut self.state, &self.shown, &self.keymap, event, now);
                self.carry_out(effects);
                self.settle();
            }
            Input::Terminal(Event::Paste(text)) => {
                popup::paste(&mut self.state, &self.shown, &text);
                self.settle();
            }
            // A terminal that was small for a moment has lost cells, even when it is back at its size by now. What it
            // lost while it had no focus, some terminals tell by the focus alone.
            Input::Terminal(Event::Resize(..) | Event::FocusGained) => {
                self.redraw(Ok(true));
                self.carry_out(memory::resized(&self.state));
            }
            Input::Terminal(Event::FocusLost) => {}
            Input::Suspend => self.suspend(),
            Input::Continued => {
                let resumed = self.console.resume();
                self.redraw(resumed);
            }
            Input::Terminate(signal) => self.ended = Some(Ok(Ended::Signal(signal))),
            Input::Lost(why) => self.ended = Some(Err(why)),
        }
    }

    pub(super) fn press(&mut self, key: KeyCombination) {
        // While nothing is there that could be done, any of the keys that usually lead out of something leads out of it.
        if self.console.is_attaching() && key == key!(esc) && self.state.popups.is_empty() {
            self.ended = Some(Ok(Ended::Done));
            return;
        }
        let effects = update::key(&mut self.state, &self.shown, &self.keymap, key);
        self.carry_out(effects);
        self.settle();
    }

    /// Forgets what the terminal shows, so that the next frame writes every cell.
    pub(super) fn redraw(&mut self, needed: Result<bool, String>) {
        match needed {
            Ok(true) => {
                // Not `Terminal::clear`: that asks the terminal where its cursor is, and the answer would come in
                // among the keys.
                let cleared =
                    self.terminal.size().and_then(|size| self.terminal.resize(Rect::from((Position::ORIGIN, size))));
                if let Err(error) = cleared {
                    self.ended = Some(Err(format!("cannot clear the terminal: {error}")));
                }
                self.settle();
            }
            Ok(false) => {}
            Err(why) => self.ended = Some(Err(why)),
        }
    }
}
