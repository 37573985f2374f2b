package rdsproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// headerSize is that of a message's type and length.
const headerSize = 5

// errLength means that a message is shorter than its own length field.
var errLength = errors.New("invalid message length")

// A tooLargeError is a message beyond what is allowed.
type tooLargeError struct{ size, limit int }

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("message of %d bytes exceeds the limit of %d bytes", e.size, e.limit)
}

// A frameReader cuts a stream into messages. Its buffer grows with the bytes that
// arrive, never by the length that a message announces.
type frameReader struct {
	r     io.Reader
	limit int // bytes of the largest message; 0: none
	start int // bytes of the buffer to begin with
	keep  int // bytes of the largest buffer that is kept between messages

	// before is called before each read, which may block. An error is returned as
	// that of the read.
	before func() error

	buf      []byte
	pos, end int // what was read and not taken
}

// buffered returns how many bytes were read and not taken.
func (f *frameReader) buffered() int { return f.end - f.pos }

// header returns the type of the next message and the length of its body, and
// takes neither. After an error of the reader it may be called again.
func (f *frameReader) header() (typ byte, body int, err error) {
	if err := f.ensure(headerSize); err != nil {
		return 0, 0, err
	}
	length := int(int32(binary.BigEndian.Uint32(f.buf[f.pos+1:])))
	if length < 4 {
		return 0, 0, errLength
	}
	if f.limit > 0 && length+1 > f.limit {
		return 0, 0, &tooLargeError{size: length + 1, limit: f.limit}
	}
	return f.buf[f.pos], length - 4, nil
}

// frame takes the next message, which header has announced, and returns it with
// its header. It is valid until the next call.
func (f *frameReader) frame(body int) ([]byte, error) {
	n := headerSize + body
	if err := f.ensure(n); err != nil {
		return nil, err
	}
	b := f.buf[f.pos : f.pos+n : f.pos+n]
	f.pos += n
	return b, nil
}

// stream takes the next message, which header has announced, in pieces. A piece is
// valid until yield returns.
func (f *frameReader) stream(body int, yield func(piece []byte, last bool)) error {
	for left := headerSize + body; left > 0; {
		if f.buffered() == 0 {
			err := f.ensure(1)
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return err
			}
		}
		n := min(left, f.buffered())
		left -= n
		piece := f.buf[f.pos : f.pos+n]
		f.pos += n
		yield(piece, left == 0)
	}
	return nil
}

// ensure reads until n bytes are there to be taken.
func (f *frameReader) ensure(n int) error {
	for f.buffered() < n {
		if f.pos == f.end {
			f.pos, f.end = 0, 0
			if len(f.buf) > f.keep {
				f.buf = nil
			}
		}
		if f.pos > 0 {
			f.end = copy(f.buf, f.buf[f.pos:f.end])
			f.pos = 0
		}
		if f.end == len(f.buf) {
			f.buf = append(make([]byte, 0, max(2*len(f.buf), f.start)), f.buf[:f.end]...)
			f.buf = f.buf[:cap(f.buf)]
		}
		if f.before != nil {
			if err := f.before(); err != nil {
				return err
			}
		}
		k, err := f.r.Read(f.buf[f.end:])
		f.end += k
		if err != nil && f.buffered() < n {
			if errors.Is(err, io.EOF) && f.buffered() > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// cstring splits b after its first string.
func cstring(b []byte) (s string, rest []byte, ok bool) {
	first, rest, ok := bytes.Cut(b, []byte{0})
	return string(first), rest, ok
}

// A boundedReader returns no byte beyond the message that is being read, so that
// whoever stops reading after a whole message has left nothing in a buffer.
type boundedReader struct {
	r    io.Reader
	head [headerSize]byte
	have int // bytes of head that were read
	left int // bytes of the body that were not
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if b.have == headerSize && b.left > 0 {
		n, err := b.r.Read(p[:min(len(p), b.left)])
		b.left -= n
		return n, err
	}
	if b.have == headerSize {
		b.have = 0
	}
	n, err := b.r.Read(p[:min(len(p), headerSize-b.have)])
	copy(b.head[b.have:], p[:n])
	b.have += n
	if b.have == headerSize {
		b.left = max(int(int32(binary.BigEndian.Uint32(b.head[1:])))-4, 0)
	}
	return n, err
}

// ahead reads until the stream fails, or as much as is kept has been read. What
// frame returned stays valid. It returns no error of a deadline.
func (f *frameReader) ahead() error {
	for f.buffered() < f.keep {
		if f.end == len(f.buf) {
			// The message that was taken last lies in the old one.
			buf := make([]byte, max(2*f.buffered(), f.start))
			f.pos, f.end, f.buf = 0, copy(buf, f.buf[f.pos:f.end]), buf
		}
		n, err := f.r.Read(f.buf[f.end:])
		f.end += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
