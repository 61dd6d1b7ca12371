//! System services: files, processes, information, memory.

use iced_x86::code_asm::*;

use super::{Assembled, Call, Code, PATCHES, call_model, own};
use crate::engine::error::VmiError;

impl Code<'_> {
    pub(super) fn write_files(&mut self) -> Result<(), VmiError> {
        let f = self.facts;
        let create = self.at("IopCreateFile")?;
        for name in ["NtCreateFile", "NtOpenFile"] {
            self.put(name, |a| {
                a.mov(qword_ptr(rsp + 8), rbx)?;
                a.mov(qword_ptr(rsp + 0x10), rsi)?;
                a.push(rdi)?;
                a.sub(rsp, 0x20)?;
                a.mov(rbx, rcx)?;
                a.mov(edi, edx)?;
                a.mov(rsi, r9)?;
                a.call(create)?;
                a.mov(qword_ptr(rbx), rdx)?;
                a.mov(dword_ptr(rsi), eax)?;
                a.add(rsp, 0x20)?;
                a.pop(rdi)?;
                a.mov(rsi, qword_ptr(rsp + 0x10))?;
                a.mov(rbx, qword_ptr(rsp + 8))?;
                a.ret()
            })?;
        }
        let open = self.at("ObOpenObjectByName")?;
        self.put("IopCreateFile", |a| {
            a.sub(rsp, 0x28)?;
            a.mov(rcx, r8)?;
            a.call(open)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let parse = self.at("IopParseDevice")?;
        let create_handle = self.at("ObpCreateHandle")?;
        self.put("ObOpenObjectByName", |a| {
            a.sub(rsp, 0x28)?;
            a.mov(rcx, qword_ptr(rcx + f.object_name))?;
            a.call(parse)?;
            a.call(create_handle)?;
            a.xor(eax, eax)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        // A hash over the first characters of the name.
        self.put("IopParseDevice", |a| {
            let mut each = a.create_label();
            a.mov(rdx, qword_ptr(rcx + f.string_buffer))?;
            a.movzx(ecx, word_ptr(rcx))?;
            a.shr(ecx, 3)?;
            a.and(ecx, 7)?;
            a.inc(ecx)?;
            a.xor(eax, eax)?;
            a.set_label(&mut each)?;
            a.rol(rax, 5)?;
            a.xor(rax, qword_ptr(rdx))?;
            a.add(rdx, 2)?;
            a.dec(ecx)?;
            a.jnz(each)?;
            a.ret()
        })?;
        // The rights are FILE_GENERIC_READ.
        self.put("ObpCreateHandle", |a| {
            let mut full = a.create_label();
            call_model(a, Call::Handle)?;
            a.test(rcx, rcx)?;
            a.jz(full)?;
            a.mov(qword_ptr(rcx + 8), 0x12_0089)?;
            a.mov(qword_ptr(rcx), rax)?;
            a.set_label(&mut full)?;
            a.ret()
        })?;
        let reference = self.at("ObReferenceObjectByHandle")?;
        let driver = self.at("IofCallDriver")?;
        for name in ["NtReadFile", "NtWriteFile"] {
            self.put(name, |a| {
                a.sub(rsp, 0x28)?;
                a.call(reference)?;
                if name == "NtReadFile" {
                    a.call(driver)?;
                }
                a.xor(eax, eax)?;
                a.add(rsp, 0x28)?;
                a.ret()
            })?;
        }
        self.put("ObReferenceObjectByHandle", |a| {
            a.mov(rax, rcx)?;
            a.shr(rax, 2)?;
            a.and(eax, 0x3ff)?;
            a.ret()
        })?;
        let swap = self.at("KiSwapThread")?;
        self.put("IofCallDriver", |a| {
            let mut done = a.create_label();
            a.sub(rsp, 0x28)?;
            call_model(a, Call::Input)?;
            a.test(eax, eax)?;
            a.jz(done)?;
            a.call(swap)?;
            a.set_label(&mut done)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let close = self.at("ObCloseHandle")?;
        self.put("NtClose", |a| {
            a.sub(rsp, 0x28)?;
            a.call(close)?;
            a.xor(eax, eax)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        self.put("ObCloseHandle", |a| {
            let mut unknown = a.create_label();
            call_model(a, Call::Close)?;
            a.test(rcx, rcx)?;
            a.jz(unknown)?;
            a.mov(qword_ptr(rcx), 0)?;
            a.set_label(&mut unknown)?;
            a.ret()
        })
    }

    pub(super) fn write_processes(&mut self) -> Result<(), VmiError> {
        let f = self.facts;
        let head = self.at("PsActiveProcessHead")?;
        let lock = self.base + own::LIST_LOCK;
        let locked = |a: &mut CodeAssembler| -> Assembled {
            let mut taken = a.create_label();
            let mut wait = a.create_label();
            a.pushfq()?;
            a.cli()?;
            a.mov(r11, lock)?;
            a.set_label(&mut wait)?;
            a.lock().bts(dword_ptr(r11), 0)?;
            a.jnc(taken)?;
            a.pause()?;
            a.jmp(wait)?;
            a.set_label(&mut taken)?;
            a.nop()
        };
        let unlock = |a: &mut CodeAssembler| -> Assembled {
            a.mov(r11, lock)?;
            a.mov(dword_ptr(r11), 0)?;
            a.popfq()
        };
        // RCX: the process.
        self.put("PspInsertProcess", |a| {
            locked(a)?;
            a.mov(r8, head)?;
            a.lea(r9, qword_ptr(rcx + f.links))?;
            a.mov(rdx, qword_ptr(r8 + 8))?;
            a.mov(qword_ptr(r9), r8)?;
            a.mov(qword_ptr(r9 + 8), rdx)?;
            a.mov(qword_ptr(rdx), r9)?;
            a.mov(qword_ptr(r8 + 8), r9)?;
            call_model(a, Call::Created)?;
            unlock(a)?;
            a.xor(eax, eax)?;
            a.ret()
        })?;
        self.put("PspProcessDelete", |a| {
            locked(a)?;
            a.lea(r9, qword_ptr(rcx + f.links))?;
            a.mov(r8, qword_ptr(r9))?;
            a.mov(rdx, qword_ptr(r9 + 8))?;
            a.mov(qword_ptr(rdx), r8)?;
            a.mov(qword_ptr(r8 + 8), rdx)?;
            call_model(a, Call::Deleted)?;
            unlock(a)?;
            a.ret()
        })?;
        let insert = self.at("PspInsertProcess")?;
        let allocate = self.at("PspAllocateProcess")?;
        self.put("NtCreateUserProcess", |a| {
            let mut full = a.create_label();
            a.push(rbx)?;
            a.sub(rsp, 0x20)?;
            a.mov(rbx, rcx)?;
            a.call(allocate)?;
            a.mov(rcx, rax)?;
            a.test(rax, rax)?;
            a.mov(eax, 0xc000_009a_u32)?;
            a.jz(full)?;
            a.call(insert)?;
            a.mov(qword_ptr(rbx), 0x1b4)?;
            a.set_label(&mut full)?;
            a.add(rsp, 0x20)?;
            a.pop(rbx)?;
            a.ret()
        })?;
        self.put("PspAllocateProcess", |a| {
            call_model(a, Call::Create)?;
            a.ret()
        })?;
        let terminate = self.at("PspTerminateProcess")?;
        self.put("NtTerminateProcess", |a| {
            a.sub(rsp, 0x28)?;
            a.call(terminate)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let exit = self.at("PspExitProcess")?;
        self.put("PspTerminateProcess", |a| {
            a.sub(rsp, 0x28)?;
            a.call(exit)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let swap = self.at("KiSwapThread")?;
        self.put("PspExitProcess", |a| {
            a.cli()?;
            call_model(a, Call::Exit)?;
            a.mov(qword_ptr(rax + f.exit_time), rdx)?;
            a.mov(dword_ptr(rax + f.active_threads), 0)?;
            a.call(swap)?;
            a.int3()
        })?;
        let allocate_memory = self.at("MiAllocateVirtualMemory")?;
        self.put("NtAllocateVirtualMemory", |a| {
            a.sub(rsp, 0x28)?;
            a.mov(rax, qword_ptr(rdx))?;
            a.call(allocate_memory)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        self.put("MiAllocateVirtualMemory", |a| {
            a.mov(rax, qword_ptr(r9))?;
            a.add(rax, 0xfff)?;
            a.and(rax, -0x1000)?;
            a.mov(qword_ptr(r9), rax)?;
            a.xor(eax, eax)?;
            a.ret()
        })?;
        let information = self.at("ExpGetProcessInformation")?;
        self.put("NtQuerySystemInformation", |a| {
            // Two bytes for patching while it runs, as the real kernel's functions have them.
            a.db(&PATCHES[0])?;
            a.push(rbx)?;
            a.sub(rsp, 0x20)?;
            a.mov(ebx, ecx)?;
            a.call(information)?;
            a.add(rsp, 0x20)?;
            a.pop(rbx)?;
            a.ret()
        })?;
        // Counts the first processes of the list.
        self.put("ExpGetProcessInformation", |a| {
            let mut each = a.create_label();
            let mut end = a.create_label();
            a.mov(rdx, head)?;
            a.mov(rcx, qword_ptr(rdx))?;
            a.xor(eax, eax)?;
            a.set_label(&mut each)?;
            a.cmp(rcx, rdx)?;
            a.je(end)?;
            a.inc(eax)?;
            a.mov(rcx, qword_ptr(rcx))?;
            a.cmp(eax, 4)?;
            a.jb(each)?;
            a.set_label(&mut end)?;
            a.xor(eax, eax)?;
            a.ret()
        })
    }
}
