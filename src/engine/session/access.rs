//! Translating, reading and writing: everything that touches guest memory goes through here.

use zerocopy::{FromBytes, IntoBytes};

use super::core::VmiCore;
use crate::engine::{
    addr::{AccessContext, AddressContext, Gfn, Pa, Va},
    arch::Architecture,
    driver::{VmiRead, VmiWrite},
    error::{PageFaults, VmiError},
};

/// Where a member of a structure lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Field {
    /// Bytes from the structure's start.
    pub offset: u64,
    /// Its size in bytes; 1, 2, 4 or 8 for [`VmiCore::read_field`].
    pub size: u64,
}

macro_rules! read_ints {
    ($($name:ident $type:ty: $doc:literal;)*) => {
        $(
            #[doc = $doc]
            ///
            /// # Errors
            /// As [`VmiCore::read`].
            #[inline]
            pub fn $name(&self, ctx: impl Into<AccessContext>) -> Result<$type, VmiError> {
                let mut bytes = [0; size_of::<$type>()];
                self.read(ctx, &mut bytes)?;
                Ok(<$type>::from_le_bytes(bytes))
            }
        )*
    };
}

impl<Driver: VmiRead> VmiCore<Driver> {
    /// Translates a virtual address.
    ///
    /// # Errors
    /// [`VmiError::Translation`] where it is not mapped or not canonical.
    #[inline]
    pub fn translate_address(&self, ctx: impl Into<AddressContext>) -> Result<Pa, VmiError> {
        let AddressContext { va, root } = ctx.into();
        let page = va.0 >> Driver::Architecture::PAGE_SHIFT;
        let offset = Driver::Architecture::va_offset(va);
        if !self.use_translations.get() {
            return Driver::Architecture::translate_address(self, va, root);
        }
        if let Some(frame) = self.translations.get(page, root) {
            return Ok(Pa(frame | offset));
        }
        let pa = Driver::Architecture::translate_address(self, va, root)?;
        self.translations.put(page, root, pa.0 & Driver::Architecture::PAGE_MASK);
        Ok(pa)
    }

    /// The physical address of an access.
    ///
    /// # Errors
    /// As [`VmiCore::translate_address`].
    #[inline]
    pub fn translate_access_context(&self, ctx: impl Into<AccessContext>) -> Result<Pa, VmiError> {
        match ctx.into() {
            AccessContext::Direct(pa) => Ok(pa),
            AccessContext::Paging(ctx) => self.translate_address(ctx),
        }
    }

    /// An aligned entry of a page table.
    ///
    /// # Errors
    /// [`VmiError::OutOfBounds`] where there is no RAM.
    #[inline]
    pub fn read_entry(&self, pa: Pa) -> Result<u64, VmiError> {
        if self.driver.is_direct() {
            return self.driver.read_physical_u64(pa);
        }
        let mut bytes = [0; 8];
        self.read_in_page(pa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Bytes that lie in one page.
    #[inline]
    fn read_in_page(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), VmiError> {
        if self.driver.is_direct() {
            return self.driver.read_physical(pa, buffer);
        }
        let gfn = Driver::Architecture::gfn_from_pa(pa);
        let offset = Driver::Architecture::pa_offset(pa) as usize;
        self.pages.read(gfn, offset, buffer, |page| self.driver.read_page(gfn, page))
    }

    /// Copies memory: all of it, or an error that names every page that is missing.
    ///
    /// # Errors
    /// [`VmiError::Translation`] with all missing pages; [`VmiError::OutOfBounds`] where page tables lead out of RAM;
    /// [`VmiError::CutShort`] in a look whose budget is used up.
    #[inline]
    pub fn read(&self, ctx: impl Into<AccessContext>, buffer: &mut [u8]) -> Result<(), VmiError> {
        let ctx = ctx.into();
        let room = Driver::Architecture::PAGE_SIZE - (ctx.address() & !Driver::Architecture::PAGE_MASK);
        if buffer.len() as u64 <= room && !buffer.is_empty() {
            self.pay()?;
            let pa = self.translate_access_context(ctx)?;
            return self.read_in_page(pa, buffer);
        }
        self.read_pages(ctx, buffer)
    }

    fn read_pages(&self, ctx: AccessContext, buffer: &mut [u8]) -> Result<(), VmiError> {
        let mut missing: Option<PageFaults> = None;
        for (at, pa, length) in self.page_parts(ctx, buffer.len()) {
            self.pay()?;
            match pa {
                Ok(pa) if missing.is_none() => {
                    if let Some(part) = buffer.get_mut(at..at + length) {
                        self.read_in_page(pa, part)?;
                    }
                }
                Ok(_) => {}
                Err(VmiError::Translation(faults)) => match &mut missing {
                    Some(all) => all.extend(faults),
                    None => missing = Some(faults),
                },
                Err(error) => return Err(error),
            }
        }
        missing.map_or(Ok(()), |faults| Err(VmiError::Translation(faults)))
    }

    /// An access cut at page boundaries: (offset in the buffer, where, bytes).
    fn page_parts(
        &self,
        ctx: AccessContext,
        length: usize,
    ) -> impl Iterator<Item = (usize, Result<Pa, VmiError>, usize)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let left = length.checked_sub(at).filter(|&left| left > 0)?;
            let here = ctx.offset(at as u64);
            let room = Driver::Architecture::PAGE_SIZE - (here.address() & !Driver::Architecture::PAGE_MASK);
            let part = left.min(room as usize);
            let from = at;
            at += part;
            Some((from, self.translate_access_context(here), part))
        })
    }

    read_ints! {
        read_u8 u8: "One byte.";
        read_u16 u16: "Two bytes, little-endian.";
        read_u32 u32: "Four bytes, little-endian.";
    }

    /// Eight bytes, little-endian.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    #[inline]
    pub fn read_u64(&self, ctx: impl Into<AccessContext>) -> Result<u64, VmiError> {
        let ctx = ctx.into();
        if ctx.address() & !Driver::Architecture::PAGE_MASK <= Driver::Architecture::PAGE_SIZE - 8 {
            self.pay()?;
            return self.read_entry(self.translate_access_context(ctx)?);
        }
        let mut bytes = [0; 8];
        self.read(ctx, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// 1, 2, 4 or 8 bytes, little-endian.
    ///
    /// # Errors
    /// As [`VmiCore::read`]; [`VmiError::Invalid`] for another size.
    pub fn read_uint(&self, ctx: impl Into<AccessContext>, size: usize) -> Result<u64, VmiError> {
        match size {
            1 => self.read_u8(ctx).map(u64::from),
            2 => self.read_u16(ctx).map(u64::from),
            4 => self.read_u32(ctx).map(u64::from),
            8 => self.read_u64(ctx),
            _ => Err(VmiError::Invalid(format!("cannot read an integer of {size} bytes: only 1, 2, 4 and 8 exist"))),
        }
    }

    /// A member of a structure.
    ///
    /// # Errors
    /// As [`VmiCore::read_uint`].
    pub fn read_field(&self, base: impl Into<AccessContext>, field: &Field) -> Result<u64, VmiError> {
        self.read_uint(base.into().offset(field.offset), field.size as usize)
    }

    /// An address of the given width in bytes (4 or 8).
    ///
    /// # Errors
    /// As [`VmiCore::read_uint`].
    pub fn read_address(&self, ctx: impl Into<AccessContext>, width: usize) -> Result<u64, VmiError> {
        match width {
            4 | 8 => self.read_uint(ctx, width),
            _ => Err(VmiError::Invalid(format!("an address has 4 or 8 bytes, not {width}"))),
        }
    }

    /// A 32-bit address.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_address32(&self, ctx: impl Into<AccessContext>) -> Result<u64, VmiError> {
        self.read_u32(ctx).map(u64::from)
    }

    /// A 64-bit address.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_address64(&self, ctx: impl Into<AccessContext>) -> Result<u64, VmiError> {
        self.read_u64(ctx)
    }

    /// A pointer of the given width in bytes (4 or 8).
    ///
    /// # Errors
    /// As [`VmiCore::read_address`].
    pub fn read_va(&self, ctx: impl Into<AccessContext>, width: usize) -> Result<Va, VmiError> {
        self.read_address(ctx, width).map(Va)
    }

    /// A 32-bit pointer.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_va32(&self, ctx: impl Into<AccessContext>) -> Result<Va, VmiError> {
        self.read_address32(ctx).map(Va)
    }

    /// A 64-bit pointer.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_va64(&self, ctx: impl Into<AccessContext>) -> Result<Va, VmiError> {
        self.read_u64(ctx).map(Va)
    }

    /// A structure, copied byte by byte as the guest has it.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_struct<T: FromBytes + IntoBytes>(&self, ctx: impl Into<AccessContext>) -> Result<T, VmiError> {
        let mut value = T::new_zeroed();
        self.read(ctx, value.as_mut_bytes())?;
        Ok(value)
    }

    /// A copy of one page.
    ///
    /// # Errors
    /// [`VmiError::OutOfBounds`] where there is no RAM.
    pub fn read_page(&self, gfn: Gfn) -> Result<Box<[u8; 4096]>, VmiError> {
        let mut page = Box::new([0; 4096]);
        self.driver.read_page(gfn, &mut page)?;
        Ok(page)
    }
}

impl<Driver: VmiRead + VmiWrite> VmiCore<Driver> {
    /// Writes memory: nothing is written unless every page is there.
    ///
    /// # Errors
    /// As [`VmiCore::read`]; [`VmiError::ReadOnly`] in a read-only session.
    pub fn write(&self, ctx: impl Into<AccessContext>, bytes: &[u8]) -> Result<(), VmiError> {
        let mut parts = Vec::new();
        let mut missing: Option<PageFaults> = None;
        for (at, pa, length) in self.page_parts(ctx.into(), bytes.len()) {
            match pa {
                Ok(pa) => parts.push((at, pa, length)),
                Err(VmiError::Translation(faults)) => match &mut missing {
                    Some(all) => all.extend(faults),
                    None => missing = Some(faults),
                },
                Err(error) => return Err(error),
            }
        }
        if let Some(faults) = missing {
            return Err(VmiError::Translation(faults));
        }
        for (at, pa, length) in parts {
            if let Some(part) = bytes.get(at..at + length) {
                self.driver.write_physical(pa, part)?;
                self.flush_gfn_cache_entry(Driver::Architecture::gfn_from_pa(pa));
            }
        }
        // The bytes may have been page-table entries.
        self.flush_v2p_cache();
        Ok(())
    }

    /// Writes one byte.
    ///
    /// # Errors
    /// As [`VmiCore::write`].
    pub fn write_u8(&self, ctx: impl Into<AccessContext>, value: u8) -> Result<(), VmiError> {
        self.write(ctx, &[value])
    }

    /// Writes two bytes, little-endian.
    ///
    /// # Errors
    /// As [`VmiCore::write`].
    pub fn write_u16(&self, ctx: impl Into<AccessContext>, value: u16) -> Result<(), VmiError> {
        self.write(ctx, &value.to_le_bytes())
    }

    /// Writes four bytes, little-endian.
    ///
    /// # Errors
    /// As [`VmiCore::write`].
    pub fn write_u32(&self, ctx: impl Into<AccessContext>, value: u32) -> Result<(), VmiError> {
        self.write(ctx, &value.to_le_bytes())
    }

    /// Writes eight bytes, little-endian.
    ///
    /// # Errors
    /// As [`VmiCore::write`].
    pub fn write_u64(&self, ctx: impl Into<AccessContext>, value: u64) -> Result<(), VmiError> {
        self.write(ctx, &value.to_le_bytes())
    }

    /// Writes a structure.
    ///
    /// # Errors
    /// As [`VmiCore::write`].
    pub fn write_struct<T: IntoBytes + zerocopy::Immutable>(
        &self,
        ctx: impl Into<AccessContext>,
        value: &T,
    ) -> Result<(), VmiError> {
        self.write(ctx, value.as_bytes())
    }
}
