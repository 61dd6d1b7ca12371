//! A user in front of one picture, with keys and a mouse.

use std::{sync::Arc, time::Duration};

use crossterm::event::{KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use vmscope::{
    app::{
        keymap::Keymap,
        script::{Script, Step},
        update::{self, Effect, hints},
    },
    engine::{
        command::Command,
        snapshot::{
            Breakpoint, BreakpointId, BreakpointState, Capability, Event, EventKind, Fault, FaultId, FaultState, Part,
            Process, Scope, Snapshot, Status, SymbolTable, Table, TableId, Va, Vcpu, VcpuId, View,
        },
    },
    ui::{
        rows,
        state::{Popup, UiState},
    },
};

/// A user in front of one picture.
pub struct User {
    pub state: UiState,
    pub snapshot: Snapshot,
    pub keymap: Keymap,
}

pub fn breakpoint(id: u64, state: BreakpointState) -> Breakpoint {
    Breakpoint {
        id: BreakpointId(id),
        symbol: format!("nt!Function{id}"),
        address: Va(0x1000 * id),
        scope: Scope::Global,
        view: View(0),
        pa: None,
        state,
        visible: false,
        tag: String::new(),
        hits: id,
        rates: Vec::new(),
        last_hits: Vec::new(),
        error: None,
    }
}

pub fn snapshot() -> Snapshot {
    let process =
        |pid: u32, name: &str| Process { pid, name: name.into(), object: Va(pid.into()), ..Process::default() };
    let event = |seq| Event {
        seq,
        at_ns: seq,
        kind: EventKind::Vm,
        vcpu: None,
        pid: None,
        process: String::new(),
        text: format!("event {seq}"),
    };
    let fault = Fault {
        id: FaultId(5),
        address: Va(0x7000),
        root: Default::default(),
        pid: None,
        asked_by: "user".into(),
        state: FaultState::Pending,
        attempts: 0,
        age_ns: 0,
        vcpu: None,
        note: String::new(),
        missing: None,
    };
    use Capability as C;
    Snapshot {
        status: Status::Running,
        processes: Part::new(vec![process(4, "System"), process(648, "lsass.exe"), process(900, "calc.exe")]),
        breakpoints: Part::new(vec![
            breakpoint(1, BreakpointState::Disabled),
            breakpoint(2, BreakpointState::Disabled),
        ]),
        page_tables: Part::new(vec![Table { id: TableId(9), ..Table::default() }]),
        faults: Part::new(vec![fault]),
        events: Part::new((0..100).map(event).collect()),
        vcpus: Part::new(vec![Vcpu { id: VcpuId(1), ..Vcpu::default() }]),
        capabilities: Part::new(vec![C::Read, C::Breakpoints, C::TableWrites, C::FaultInjection, C::Pause, C::Step]),
        symbols: Arc::new(SymbolTable::new([
            ("nt!NtCreateFile", Va(0x1000)),
            ("nt!NtCreateKey", Va(0x2000)),
            ("nt!NtOpenFile", Va(0x3000)),
        ])),
        ..Snapshot::default()
    }
}

impl User {
    pub fn new() -> Self {
        Self::with(snapshot())
    }

    pub fn with(snapshot: Snapshot) -> Self {
        let mut user = Self {
            state: UiState { size: (120, 40), ..UiState::default() },
            snapshot,
            keymap: Keymap::new(&[]).unwrap(),
        };
        user.settle();
        user
    }

    pub fn settle(&mut self) {
        rows::settle(&self.snapshot, &mut self.state);
        hints::refresh(&mut self.state, &self.snapshot, &self.keymap);
    }

    /// Presses keys and answers what they ask of the world.
    pub fn press(&mut self, keys: &str) -> Vec<Effect> {
        let mut effects = Vec::new();
        for step in keys.parse::<Script>().unwrap().steps {
            let Step::Key(key) = step else { panic!("only keys here: {keys}") };
            effects.extend(update::key(&mut self.state, &self.snapshot, &self.keymap, key));
            self.settle();
        }
        effects
    }

    pub fn commands(&mut self, keys: &str) -> Vec<Command> {
        let command = |effect| match effect {
            Effect::Send(command) | Effect::SendFrom(command, _) => Some(command),
            _ => None,
        };
        self.press(keys).into_iter().filter_map(command).collect()
    }

    /// The left button at a point, `at` milliseconds after the start.
    pub fn click(&mut self, x: u16, y: u16, at: u64) -> Vec<Effect> {
        self.mouse(MouseEventKind::Down(MouseButton::Left), x, y, at)
    }

    pub fn mouse(&mut self, kind: MouseEventKind, column: u16, row: u16, at: u64) -> Vec<Effect> {
        let event = MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE };
        let now = Duration::from_millis(at);
        let effects = update::mouse::mouse(&mut self.state, &self.snapshot, &self.keymap, event, now);
        self.settle();
        effects
    }

    pub fn notice(&self) -> &str {
        self.state.notices.last().map_or("", |notice| &notice.text)
    }

    pub fn popup(&self) -> Option<&Popup> {
        self.state.popups.last()
    }
}
