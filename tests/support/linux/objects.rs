//! Modules, sockets and system calls of the kernel that is written by hand.

use vmscope::engine::addr::Va;

use super::{Machine, offset};

impl Machine {
    /// Loads a module: into the list, into `/sys/module` and into the tree of addresses, the last one at its root.
    pub fn load_module(&self, name: &str, base: Va, bytes: u32) -> Va {
        let module = self.alloc(0x200);
        self.poke(module + offset("module", "name"), name.as_bytes());
        self.poke64(module + offset("module", "mem.base"), base.0);
        self.poke32(module + offset("module", "mem.size"), bytes);
        self.push(Self::MODULES, module + offset("module", "list"));

        let set = match self.peek64(Self::MODULE_SET) {
            0 => {
                let set = self.alloc(0x80);
                self.poke64(Self::MODULE_SET, set.0);
                let head = set + offset("kset", "list");
                self.poke64(head, head.0);
                // The kernel's own parameters have a folder, too, and no module.
                let own = self.alloc(0x100);
                self.push(head, own + offset("module_kobject", "kobj") + offset("kobject", "entry"));
                set
            }
            set => Va(set),
        };
        let folder = self.alloc(0x100);
        self.poke64(folder + offset("module_kobject", "mod"), module.0);
        self.push(set + offset("kset", "list"), folder + offset("module_kobject", "kobj") + offset("kobject", "entry"));

        let (root, node) = (Self::MODULE_TREE + offset("mod_tree_root", "root.tree.rb_node"), self.alloc(0x80));
        self.poke64(node + offset("mod_tree_node", "mod"), module.0);
        let own = node + offset("mod_tree_node", "node.node");
        self.poke64(own + offset("rb_node", "rb_left"), self.peek64(root));
        self.poke64(root, own.0);
        module
    }

    /// Gives a module a table of symbols: name, address, section (0 for one that it only uses).
    pub fn module_symbols(&self, module: Va, symbols: &[(&str, Va, u16)]) {
        let (table, entries, strings) = (self.alloc(0x18), self.alloc(0x400), self.alloc(0x400));
        let mut end = 1;
        for (nth, (name, va, section)) in symbols.iter().enumerate() {
            let entry = entries + nth as u64 * 24;
            self.poke32(entry, end as u32);
            self.poke(entry + 6, &section.to_le_bytes());
            self.poke64(entry + 8, va.0);
            self.poke(strings + end, name.as_bytes());
            end += name.len() as u64 + 1;
        }
        self.poke64(table + offset("mod_kallsyms", "symtab"), entries.0);
        self.poke32(table + offset("mod_kallsyms", "num_symtab"), symbols.len() as u32);
        self.poke64(table + offset("mod_kallsyms", "strtab"), strings.0);
        self.poke64(module + offset("module", "kallsyms"), table.0);
    }

    /// Takes a module out of the list, as a rootkit does.
    pub fn hide_module(&self, module: Va) {
        self.take(Self::MODULES, module + offset("module", "list"));
    }

    /// Takes away the last module's folder in `/sys/module` as well.
    pub fn hide_folder(&self) {
        let head = Va(self.peek64(Self::MODULE_SET)) + offset("kset", "list");
        self.poke64(head, self.peek64(Va(self.peek64(head))));
    }

    /// Puts a node at the front of a list.
    fn push(&self, head: Va, node: Va) {
        self.poke64(node, self.peek64(head));
        self.poke64(head, node.0);
    }

    /// Takes a node out of a list.
    pub fn take(&self, head: Va, node: Va) {
        let mut before = head;
        while self.peek64(before) != node.0 {
            before = Va(self.peek64(before));
        }
        self.poke64(before, self.peek64(node));
    }

    /// An open socket: family, protocol, state; its ends as bytes and port; for Unix, its name.
    pub fn socket(&self, family: u16, (protocol, state): (u16, u8), ends: [(&[u8], u16); 2], name: &[u8]) -> Va {
        let file = self.pseudo_file("", "sockfs", Some("sockfs_dname"));
        let (socket, sock) = (self.alloc(0x40), self.alloc(0x200));
        self.poke64(file + offset("file", "private_data"), socket.0);
        self.poke64(socket + offset("socket", "sk"), sock.0);
        let at = |member: &str| sock + offset("sock", member);
        self.poke(at("__sk_common.skc_family"), &family.to_le_bytes());
        self.poke(at("__sk_common.skc_state"), &[state]);
        self.poke(at("sk_protocol"), &protocol.to_le_bytes());
        let [(ours, our_port), (theirs, their_port)] = ends;
        let long = ours.len() == 16;
        self.poke(at(if long { "__sk_common.skc_v6_rcv_saddr" } else { "__sk_common.skc_rcv_saddr" }), ours);
        self.poke(at(if long { "__sk_common.skc_v6_daddr" } else { "__sk_common.skc_daddr" }), theirs);
        self.poke(at("__sk_common.skc_num"), &our_port.to_le_bytes());
        self.poke(at("__sk_common.skc_dport"), &their_port.to_be_bytes());
        if !name.is_empty() {
            let address = self.alloc(0x100);
            self.poke64(sock + offset("unix_sock", "addr"), address.0);
            self.poke32(address + offset("unix_address", "len"), name.len() as u32 + 2);
            self.poke(address + offset("unix_address", "name") + 2, name);
        }
        file
    }

    /// Tells what is traced of `openat`, the only system call: types and names of its arguments.
    pub fn trace_openat(&self, arguments: &[(&str, &str)]) {
        let (types, names) = (self.alloc(64), self.alloc(64));
        for (index, (kind, name)) in arguments.iter().enumerate() {
            for (array, text) in [(types, kind), (names, name)] {
                let at = self.alloc(32);
                self.poke(at, text.as_bytes());
                self.poke64(array + index as u64 * 8, at.0);
            }
        }
        self.poke64(Self::OPENAT_FACTS + offset("syscall_metadata", "name"), types.0);
        self.poke32(Self::OPENAT_FACTS + offset("syscall_metadata", "nb_args"), arguments.len() as u32);
        self.poke64(Self::OPENAT_FACTS + offset("syscall_metadata", "types"), types.0);
        self.poke64(Self::OPENAT_FACTS + offset("syscall_metadata", "args"), names.0);
    }

    /// The registers of user mode as the kernel saves them, for the six arguments of a call.
    pub fn saved_registers(&self, arguments: [u64; 6]) -> Va {
        let saved = self.alloc(0xa8);
        // di, si, dx, r10, r8, r9 in `struct pt_regs`.
        for (at, value) in [0x70, 0x68, 0x60, 0x38, 0x48, 0x40].into_iter().zip(arguments) {
            self.poke64(saved + at, value);
        }
        saved
    }
}
