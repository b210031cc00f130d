//! Pooled buffers: fixed memory, handed out as counted slices, returned by drop.
//!
//! A [`Buffer`] is what a protocol receives. It can be read as bytes, sliced, kept, or given back
//! to a send without a copy; when its last slice is dropped the memory returns to the pool of its
//! shard, and the driver gives it to the kernel again. Buffers never leave their shard: the count
//! is not atomic and the type is not `Send`.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::rc::Rc;

/// A private anonymous memory map. Pages cost nothing until they are touched.
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
}

impl Region {
    /// Maps `len` bytes of zeroed memory, page aligned.
    pub(crate) fn map(len: usize) -> std::io::Result<Self> {
        let len = len.max(1);
        // SAFETY: a fresh anonymous private map touches no existing memory; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self {
            base: NonNull::new(base.cast()).expect("mmap never returns null here"),
            len,
        })
    }

    /// The first byte of the region.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and len are those of the map made in `map`, unmapped only here.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Where the bytes of a pool are.
enum Memory {
    Map(Region),
    /// Cells, so that the sole handle may write through a shared count.
    Own(Box<[Cell<u8>]>),
}

impl Memory {
    fn base(&self) -> *mut u8 {
        match self {
            Self::Map(region) => region.base(),
            Self::Own(cells) => cells.as_ptr().cast::<u8>().cast_mut(),
        }
    }
}

struct PoolInner {
    memory: Memory,
    buffer_len: usize,
    /// Outstanding slices of each buffer, plus one while the kernel may still write to it.
    refs: Box<[Cell<u32>]>,
    /// What who filled a buffer last has noted about it. None for memory of its own.
    notes: Box<[Cell<Note>]>,
    free: RefCell<Vec<u32>>,
}

/// See [`BufferMut::mark`].
#[derive(Clone, Copy, Default)]
struct Note {
    /// The service, and one more; 0 for nobody.
    owner: u32,
    mark: u64,
}

/// A pool of equal buffers that belongs to one shard.
///
/// The pool knows which buffers are free; a driver takes them to receive into or to fill.
#[derive(Clone)]
pub(crate) struct Pool(Rc<PoolInner>);

impl Pool {
    /// A pool of `count` buffers of `buffer_len` bytes, all free.
    pub(crate) fn new(count: u32, buffer_len: usize) -> std::io::Result<Self> {
        Ok(Self(Rc::new(PoolInner {
            memory: Memory::Map(Region::map(count as usize * buffer_len)?),
            buffer_len,
            refs: vec![Cell::new(0); count as usize].into_boxed_slice(),
            notes: vec![Cell::default(); count as usize].into_boxed_slice(),
            free: RefCell::new((0..count).rev().collect()),
        })))
    }

    /// Bytes in each buffer.
    pub(crate) fn buffer_len(&self) -> usize {
        self.0.buffer_len
    }

    /// Buffers in the pool, free or not.
    pub(crate) fn capacity(&self) -> usize {
        self.0.refs.len()
    }

    /// Buffers that nobody holds.
    pub(crate) fn available(&self) -> usize {
        self.0.free.borrow().len()
    }

    /// The address of a buffer, for the kernel.
    pub(crate) fn address(&self, index: u32) -> *mut u8 {
        assert!((index as usize) < self.0.refs.len());
        // SAFETY: the index is within the pool, so the result is inside the region.
        unsafe { self.0.memory.base().add(index as usize * self.0.buffer_len) }
    }

    /// Takes a free buffer to lend it to the kernel, or to fill it. Its count becomes one: that
    /// reference is the kernel's and ends with [`Pool::release`] or becomes a handle by
    /// [`Pool::adopt`].
    pub(crate) fn take(&self) -> Option<u32> {
        let index = self.0.free.borrow_mut().pop()?;
        debug_assert_eq!(self.0.refs[index as usize].get(), 0);
        self.0.refs[index as usize].set(1);
        Some(index)
    }

    /// Ends the kernel's reference to a buffer.
    pub(crate) fn release(&self, index: u32) {
        self.0.unref(index);
    }

    /// Turns the kernel's reference into a handle on `len` bytes from `offset`.
    pub(crate) fn adopt(&self, index: u32, offset: usize, len: usize) -> Buffer {
        assert!(
            offset + len <= self.0.buffer_len,
            "the kernel wrote past a buffer"
        );
        debug_assert!(self.0.refs[index as usize].get() >= 1);
        Buffer {
            pool: self.0.clone(),
            index,
            offset: offset as u32,
            len: len as u32,
        }
    }

    /// One more handle on a buffer whose kernel reference stays (incremental consumption).
    pub(crate) fn share(&self, index: u32, offset: usize, len: usize) -> Buffer {
        let refs = &self.0.refs[index as usize];
        refs.set(refs.get() + 1);
        self.adopt(index, offset, len)
    }

    /// Whether no handle is left on a buffer that we took: its memory can be filled from the start.
    pub(crate) fn is_sole(&self, index: u32) -> bool {
        self.0.refs[index as usize].get() == 1
    }

    /// A free buffer to be filled by the protocol, if there is one.
    pub(crate) fn fill(&self) -> Option<BufferMut> {
        let index = self.take()?;
        Some(BufferMut(self.adopt(index, 0, self.buffer_len())))
    }
}

impl PoolInner {
    fn unref(&self, index: u32) {
        let refs = &self.refs[index as usize];
        debug_assert!(refs.get() > 0, "a buffer was returned twice");
        let left = refs.get() - 1;
        refs.set(left);
        if left == 0 {
            self.free.borrow_mut().push(index);
        }
    }
}

/// A slice of a pooled buffer. Cloning and slicing are a shard-local count, never a copy.
pub struct Buffer {
    pool: Rc<PoolInner>,
    index: u32,
    offset: u32,
    len: u32,
}

impl Buffer {
    /// A buffer with memory of its own: for bytes that must not pin a pool.
    #[must_use]
    pub fn copied(bytes: &[u8]) -> Self {
        let memory: Box<[Cell<u8>]> = bytes.iter().copied().map(Cell::new).collect();
        let pool = PoolInner {
            memory: Memory::Own(memory),
            buffer_len: bytes.len(),
            refs: Box::new([Cell::new(1)]),
            notes: Box::default(),
            free: RefCell::new(Vec::new()),
        };
        Self {
            pool: Rc::new(pool),
            index: 0,
            offset: 0,
            len: bytes.len() as u32,
        }
    }

    /// A part of this buffer, sharing its memory.
    ///
    /// # Panics
    /// When the range is not within the buffer.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len as usize,
            "slice out of range"
        );
        let mut part = self.clone();
        part.offset += range.start as u32;
        part.len = (range.end - range.start) as u32;
        part
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len as usize, "advance past the end");
        self.offset += count as u32;
        self.len -= count as u32;
    }

    /// Shortens the slice to its first `len` bytes; no effect when it is shorter already.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len.min(u32::MAX as usize) as u32);
    }

    /// Bytes of memory that this handle keeps from its pool: the whole buffer, however short the
    /// slice. Queue bounds that pin buffers should charge this.
    #[must_use]
    pub fn pinned_bytes(&self) -> usize {
        self.pool.buffer_len
    }

    /// The bytes for writing, when this is the only handle on the buffer.
    pub fn as_mut(&mut self) -> Option<&mut [u8]> {
        if self.pool.refs[self.index as usize].get() != 1 {
            return None;
        }
        // SAFETY: the only reference is ours (neither another slice nor the kernel holds one, both
        // are counted), and `self` is borrowed mutably for as long as the slice lives.
        Some(unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len as usize) })
    }

    fn pointer(&self) -> *mut u8 {
        // SAFETY: index, offset and len were checked against the pool when the handle was made and
        // only ever narrowed since.
        unsafe {
            self.pool
                .memory
                .base()
                .add(self.index as usize * self.pool.buffer_len + self.offset as usize)
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory lives as long as the pool, which `self` keeps; while a handle exists
        // the kernel writes only past the slices it has reported (incremental buffers) or not at
        // all, and `as_mut` gives write access only to the sole handle.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len as usize) }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let refs = &self.pool.refs[self.index as usize];
        refs.set(refs.get() + 1);
        Self {
            pool: self.pool.clone(),
            index: self.index,
            offset: self.offset,
            len: self.len,
        }
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        self.pool.unref(self.index);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// A pooled buffer to be filled in place and sent, whole or piece by piece.
pub struct BufferMut(Buffer);

impl BufferMut {
    /// What this service noted when it last filled the same memory, whose bytes are still there; 0
    /// when another had it since, or nobody before. So what stays the same from send to send is
    /// written once.
    #[inline]
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.0.pool.notes[self.0.index as usize].get().mark
    }

    /// Notes something for the next fill of the same memory by this service.
    #[inline]
    pub fn set_mark(&mut self, mark: u64) {
        let note = &self.0.pool.notes[self.0.index as usize];
        note.set(Note { mark, ..note.get() });
    }

    /// The buffer is now this service's to fill: a note of another is gone.
    #[inline]
    pub(crate) fn claim(&mut self, service: crate::ServiceId) {
        let note = &self.0.pool.notes[self.0.index as usize];
        let owner = u32::from(service) + 1;
        if note.get().owner != owner {
            note.set(Note { owner, mark: 0 });
        }
    }

    /// Takes the first `len` bytes off as a buffer that can be sent; what follows is still to be
    /// filled. So several small sends share one buffer, and the cache holds them.
    ///
    /// # Panics
    /// When the buffer is shorter than `len`.
    #[must_use]
    pub fn split_front(&mut self, len: usize) -> Buffer {
        let front = self.0.slice(0..len);
        self.0.advance(len);
        front
    }

    /// The first `len` bytes as a buffer that can be sent.
    ///
    /// # Panics
    /// When the buffer is shorter than `len`.
    #[must_use]
    pub fn freeze(mut self, len: usize) -> Buffer {
        assert!(len <= self.0.len as usize, "freeze past the end");
        self.0.truncate(len);
        self.0
    }
}

impl Deref for BufferMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for BufferMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: this is the only handle on these bytes: it began as the only one on its buffer, it
        // is neither cloned nor sliced but by `split_front`, which leaves it what follows the slice,
        // and a slice is never widened. `as_mut` of such a slice is denied while this handle counts.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer(), self.0.len as usize) }
    }
}

impl fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferMut({} bytes)", self.0.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_returns_when_its_last_slice_is_dropped() {
        let pool = Pool::new(2, 64).unwrap();
        let first = pool.take().unwrap();
        let whole = pool.adopt(first, 0, 10);
        let part = whole.slice(2..5);
        drop(whole);
        assert_eq!(pool.available(), 1);
        assert_eq!(part.len(), 3);
        drop(part);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn the_kernels_reference_keeps_a_shared_buffer() {
        let pool = Pool::new(1, 64).unwrap();
        let index = pool.take().unwrap();
        let slice = pool.share(index, 0, 8);
        drop(slice);
        assert_eq!(pool.available(), 0);
        pool.release(index);
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn a_copied_buffer_pins_no_pool() {
        let mut copy = Buffer::copied(b"hello");
        copy.as_mut().unwrap()[0] = b'j';
        let part = copy.slice(0..4);
        drop(copy);
        assert_eq!(&part[..], b"jell");
        assert!(Buffer::copied(b"").is_empty());
    }

    #[test]
    fn pieces_of_a_buffer_that_is_being_filled_are_apart() {
        let pool = Pool::new(1, 64).unwrap();
        let mut rest = pool.fill().unwrap();
        rest[..4].fill(1);
        let mut first = rest.split_front(4);
        rest.fill(2);
        assert_eq!((rest.len(), &first[..]), (60, &[1; 4][..]));
        assert!(first.as_mut().is_none(), "others hold the same memory");
        let second = rest.split_front(60);
        assert!(rest.is_empty());
        drop((first, rest));
        assert_eq!((pool.available(), &second[..]), (0, &[2; 60][..]));
        drop(second);
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn only_a_sole_handle_can_be_written() {
        let pool = Pool::new(1, 8).unwrap();
        let mut filled = pool.fill().unwrap();
        filled.copy_from_slice(b"abcdefgh");
        let mut buffer = filled.freeze(4);
        let other = buffer.clone();
        assert!(buffer.as_mut().is_none());
        drop(other);
        buffer.as_mut().unwrap()[0] = b'z';
        assert_eq!(&buffer[..], b"zbcd");
        assert!(pool.fill().is_none());
    }

    #[test]
    fn a_mark_stays_with_its_memory_and_its_service() {
        let pool = Pool::new(1, 8).unwrap();
        for (service, found) in [(0, 0), (0, 7), (1, 0), (1, 7), (0, 0)] {
            let mut filled = pool.fill().unwrap();
            filled.claim(service);
            assert_eq!(filled.mark(), found, "service {service}");
            filled.set_mark(7);
            drop(filled.freeze(4));
        }
    }
}
