//! Programs for real mode, as firmware loads them from the first sector of a disk.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where firmware puts the sector.
const ADDRESS: u32 = 0x7c00;
const SECTOR: usize = 512;

/// A program of at most a sector that calls the firmware.
pub struct BootSector {
    asm: CodeAssembler,
}

type Step = Result<(), IcedError>;

impl BootSector {
    /// Assembles `program`, which goes on for ever after its end.
    ///
    /// # Panics
    ///
    /// If an instruction has no encoding, or the program does not fit: a mistake in it.
    pub fn assemble(program: impl FnOnce(&mut Self) -> Step) -> Vec<u8> {
        let mut sector = Self { asm: CodeAssembler::new(16).unwrap() };
        sector.begin().unwrap();
        program(&mut sector).unwrap();
        sector.halt().unwrap();
        let mut bytes = sector.asm.assemble(ADDRESS.into()).unwrap();
        assert!(bytes.len() <= SECTOR - 2, "a boot sector of {} bytes", bytes.len());
        bytes.resize(SECTOR - 2, 0);
        bytes.extend([0x55, 0xaa]);
        bytes
    }

    /// Segments at 0, the stack below the program.
    fn begin(&mut self) -> Step {
        let a = &mut self.asm;
        a.cli()?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(sp, ADDRESS)?;
        a.sti()
    }

    /// The assembler, for what has no name here.
    pub fn asm(&mut self) -> &mut CodeAssembler {
        &mut self.asm
    }

    /// Waits for interrupts for ever.
    pub fn halt(&mut self) -> Step {
        let mut again = self.asm.create_label();
        self.asm.set_label(&mut again)?;
        self.asm.hlt()?;
        self.asm.jmp(again)
    }

    /// Prints the character in al.
    pub fn print_al(&mut self) -> Step {
        let a = &mut self.asm;
        a.mov(ah, 0x0eu32)?;
        a.mov(bx, 7u32)?;
        a.int(0x10)
    }

    /// Prints `text`.
    pub fn print(&mut self, text: &str) -> Step {
        for byte in text.bytes() {
            self.asm.mov(al, u32::from(byte))?;
            self.print_al()?;
        }
        Ok(())
    }

    /// Writes `value` to a port.
    pub fn out(&mut self, port: u32, value: u32) -> Step {
        let a = &mut self.asm;
        a.mov(dx, port)?;
        a.mov(al, value)?;
        a.out(dx, al)
    }
}
