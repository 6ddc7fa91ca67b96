//! The word of a process that ends, under C11's memory model, as loom explores it.

use lamport_rs_protocol::life;
use lamport_rs_protocol::notices::StatusWords;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

/// What the system stores: it replaces the number of the thread that held the word.
const OWNER_DIED: u32 = 1 << 30;
const THREAD: u32 = 12;

struct Page {
    word: AtomicU32,
    stored: Ordering,
    /// What the process sends.
    data: AtomicU32,
}

impl Page {
    fn new(stored: Ordering) -> Arc<Self> {
        Arc::new(Self { word: AtomicU32::new(0), stored, data: AtomicU32::new(0) })
    }

    /// The thread that held the word ends.
    fn thread_ends(&self) {
        let _ = self.word.compare_exchange(THREAD, OWNER_DIED, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl StatusWords for Page {
    fn load(&self, _rank: usize, _word: usize) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    fn store(&self, _rank: usize, _word: usize, value: u32) {
        // Not `store`: loom lets a replacement that comes before it be found after it.
        self.word.swap(value, self.stored);
    }

    fn replace(&self, _rank: usize, _word: usize, current: u32, new: u32) -> bool {
        self.word.compare_exchange(current, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

fn who_finds_the_end_finds_what_was_sent(stored: Ordering) {
    loom::model(move || {
        let page = Page::new(stored);
        let process = {
            let page = page.clone();
            loom::thread::spawn(move || {
                page.data.store(1, Ordering::Relaxed);
                life::end(&*page);
            })
        };
        if life::ends(&*page) {
            assert_eq!(page.data.load(Ordering::Relaxed), 1, "it was sent before");
        }
        process.join().unwrap();
        assert!(life::ends(&*page));
    });
}

#[test]
fn a_process_that_ends_in_order_has_sent_all() {
    who_finds_the_end_finds_what_was_sent(Ordering::Release);
}

#[test]
#[should_panic(expected = "it was sent before")]
fn without_release_it_need_not_have() {
    who_finds_the_end_finds_what_was_sent(Ordering::Relaxed);
}

/// Whichever of them comes first: the thread that holds the word, its end, or that of the process.
#[test]
fn an_end_is_never_taken_back() {
    loom::model(|| {
        let page = Page::new(Ordering::Release);
        let holder = {
            let page = page.clone();
            loom::thread::spawn(move || {
                life::hold(&*page, THREAD);
                page.thread_ends();
            })
        };
        life::end(&*page);
        assert!(life::ends(&*page));
        holder.join().unwrap();
        assert!(life::ends(&*page));
    });
}

#[test]
fn a_process_lives_while_its_thread_holds_the_word_and_not_when_that_has_ended() {
    loom::model(|| {
        let page = Page::new(Ordering::Release);
        assert!(!life::ends(&*page));
        life::hold(&*page, THREAD);
        assert!(!life::ends(&*page));
        page.thread_ends();
        assert!(life::ends(&*page));
    });
}
