//! Strings out of guest memory: read page by page, never a byte beyond the limit or beyond the terminator's page.

use super::core::VmiCore;
use crate::engine::{addr::AccessContext, arch::Architecture, driver::VmiRead, error::VmiError};

impl<Driver: VmiRead> VmiCore<Driver> {
    /// Units of `SIZE` bytes up to a zero unit or up to `limit` units. A page that is missing is an error only where the
    /// string needs it.
    fn read_units<const SIZE: usize>(
        &self,
        ctx: AccessContext,
        limit: Option<usize>,
    ) -> Result<Vec<[u8; SIZE]>, VmiError> {
        let mut units: Vec<[u8; SIZE]> = Vec::new();
        let mut page = [0; 4096];
        loop {
            let left = limit.map_or(usize::MAX, |limit| limit.saturating_sub(units.len()));
            if left == 0 {
                return Ok(units);
            }
            let here = ctx.offset((units.len() * SIZE) as u64);
            let room = (Driver::Architecture::PAGE_SIZE - (here.address() & !Driver::Architecture::PAGE_MASK)) as usize;
            // A unit may straddle two pages; then this one unit is read by itself.
            let want = (room / SIZE).clamp(1, left).saturating_mul(SIZE);
            let Some(buffer) = page.get_mut(..want) else { return Ok(units) };
            self.read(here, buffer)?;
            for unit in buffer.as_chunks::<SIZE>().0 {
                if *unit == [0; SIZE] {
                    return Ok(units);
                }
                units.push(*unit);
            }
        }
    }

    /// The bytes of a zero-terminated string, without the zero; cut at
    /// [`read_string_length_limit`](VmiCore::read_string_length_limit).
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_string_bytes(&self, ctx: impl Into<AccessContext>) -> Result<Vec<u8>, VmiError> {
        let units = self.read_units::<1>(ctx.into(), self.read_string_length_limit())?;
        Ok(units.into_iter().map(|[byte]| byte).collect())
    }

    /// The same, cut at `limit` bytes, of which none behind the limit is touched.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_string_bytes_limited(&self, ctx: impl Into<AccessContext>, limit: usize) -> Result<Vec<u8>, VmiError> {
        let units = self.read_units::<1>(ctx.into(), Some(limit))?;
        Ok(units.into_iter().map(|[byte]| byte).collect())
    }

    /// A zero-terminated string; what is not UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_string(&self, ctx: impl Into<AccessContext>) -> Result<String, VmiError> {
        Ok(String::from_utf8_lossy(&self.read_string_bytes(ctx)?).into_owned())
    }

    /// The same, cut at `limit` bytes.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_string_limited(&self, ctx: impl Into<AccessContext>, limit: usize) -> Result<String, VmiError> {
        Ok(String::from_utf8_lossy(&self.read_string_bytes_limited(ctx, limit)?).into_owned())
    }

    /// The same with an ellipsis where it was cut: for people. The byte behind the limit tells; one that cannot be read is
    /// no end.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_string_marked(&self, ctx: impl Into<AccessContext>, limit: usize) -> Result<String, VmiError> {
        let ctx = ctx.into();
        let bytes = self.read_string_bytes_limited(ctx, limit)?;
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        if bytes.len() == limit && !matches!(self.read_u8(ctx.offset(limit as u64)), Ok(0)) {
            text.push('…');
        }
        Ok(text)
    }

    /// The units of a zero-terminated UTF-16 string, cut at the limit of [`VmiCore::read_string_length_limit`].
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_wstring_bytes(&self, ctx: impl Into<AccessContext>) -> Result<Vec<u16>, VmiError> {
        let units = self.read_units::<2>(ctx.into(), self.read_string_length_limit())?;
        Ok(units.into_iter().map(u16::from_le_bytes).collect())
    }

    /// The same, cut at `limit` units.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_wstring_bytes_limited(
        &self,
        ctx: impl Into<AccessContext>,
        limit: usize,
    ) -> Result<Vec<u16>, VmiError> {
        let units = self.read_units::<2>(ctx.into(), Some(limit))?;
        Ok(units.into_iter().map(u16::from_le_bytes).collect())
    }

    /// A zero-terminated UTF-16 string; unpaired surrogates become U+FFFD.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_wstring(&self, ctx: impl Into<AccessContext>) -> Result<String, VmiError> {
        Ok(String::from_utf16_lossy(&self.read_wstring_bytes(ctx)?))
    }

    /// The same, cut at `limit` units.
    ///
    /// # Errors
    /// As [`VmiCore::read`].
    pub fn read_wstring_limited(&self, ctx: impl Into<AccessContext>, limit: usize) -> Result<String, VmiError> {
        Ok(String::from_utf16_lossy(&self.read_wstring_bytes_limited(ctx, limit)?))
    }
}
