package rdsproxy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A step is messages that are sent in one piece, and the message up to which the
// answer is read.
type step struct {
	send  []pgproto3.FrontendMessage
	raw   []byte // sent after send
	until byte   // default: ReadyForQuery
	n     int    // the nth of its type; default: 1
}

func q(text string) step { return step{send: msgs(&pgproto3.Query{String: text})} }

func qs(texts ...string) []step {
	var steps []step
	for _, text := range texts {
		steps = append(steps, q(text))
	}
	return steps
}

// x is one flight of messages with a Sync at its end.
func x(messages ...pgproto3.FrontendMessage) step {
	return step{send: append(messages, &pgproto3.Sync{})}
}

// syncs is one flight of messages with n Syncs in it.
func syncs(n int, messages ...pgproto3.FrontendMessage) step { return step{send: messages, n: n} }

// upTo is one flight that is answered up to a message that is not ReadyForQuery.
func upTo(until byte, messages ...pgproto3.FrontendMessage) step {
	return step{send: messages, until: until}
}

func msgs(m ...pgproto3.FrontendMessage) []pgproto3.FrontendMessage { return m }

func prep(name, text string) *pgproto3.Parse { return &pgproto3.Parse{Name: name, Query: text} }

func bind(statement string, params ...string) *pgproto3.Bind {
	b := &pgproto3.Bind{PreparedStatement: statement}
	for _, p := range params {
		b.Parameters = append(b.Parameters, []byte(p))
	}
	return b
}

func portal(name, statement string) *pgproto3.Bind {
	return &pgproto3.Bind{DestinationPortal: name, PreparedStatement: statement}
}

func do() *pgproto3.Execute { return &pgproto3.Execute{} }

func rows(portal string, n uint32) *pgproto3.Execute {
	return &pgproto3.Execute{Portal: portal, MaxRows: n}
}

func describe(typ byte, name string) *pgproto3.Describe {
	return &pgproto3.Describe{ObjectType: typ, Name: name}
}

func shut(typ byte, name string) *pgproto3.Close {
	return &pgproto3.Close{ObjectType: typ, Name: name}
}

func data(text string) *pgproto3.CopyData { return &pgproto3.CopyData{Data: []byte(text)} }

var (
	syncMsg  = &pgproto3.Sync{}
	flushMsg = &pgproto3.Flush{}
	done     = &pgproto3.CopyDone{}
	fail     = &pgproto3.CopyFail{Message: "no more"}
)

// run is one use of an unnamed statement.
func run(text string, params ...string) []pgproto3.FrontendMessage {
	return msgs(prep("", text), bind("", params...), describe('P', ""), do())
}

func flight(parts ...[]pgproto3.FrontendMessage) []pgproto3.FrontendMessage {
	var all []pgproto3.FrontendMessage
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// corpusSchema is there before each script, with the same rows.
const (
	corpusSchema = `
CREATE TABLE things (id int PRIMARY KEY, name text, price numeric, raw bytea);
CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE strict (id int NOT NULL CHECK (id > 0));`
	corpusRows = `
TRUNCATE things, deferred, strict;
INSERT INTO things VALUES (1, 'one', 1.5, '\x00ff'), (2, NULL, NULL, NULL), (3, 'drei', 3.25, '');`
)

var corpus = map[string][]step{
	"simple": qs("SELECT 1", "SELECT 1 AS a, 'x'::text AS b, NULL::int AS c", "", ";", " -- nothing", "SELECT 1; SELECT 'x'; ;SELECT 3",
		"TABLE things", "SELECT * FROM things WHERE false", "VALUES (1), (2), (NULL)"),
	"simple errors": qs("SELECT 1/0", "SELEC 1", "SELECT 1; SELECT 1/0; SELECT 2", "SELECT nothing FROM things", "INSERT INTO strict VALUES (0)",
		"INSERT INTO things VALUES (1)", "SELECT 'unterminated", "SELECT 1"),
	"notices":      qs("DO $$ BEGIN RAISE NOTICE 'n'; RAISE WARNING 'w' USING DETAIL = 'd', HINT = 'h'; END $$", "COMMIT", "ROLLBACK", "DROP TABLE IF EXISTS none"),
	"large":        qs("SELECT repeat('x', 300000), repeat('y', 70000) FROM generate_series(1, 5)", "SELECT g, g::text FROM generate_series(1, 20000) g", "SELECT repeat('x', 16383)"),
	"many columns": qs("SELECT " + strings.Repeat("1,", 1500) + "2"),
	"transaction": qs("BEGIN", "INSERT INTO things VALUES (4)", "SELECT id FROM things ORDER BY 1", "COMMIT", "BEGIN", "SELECT 1/0", "SELECT 1", "BEGIN", "ROLLBACK",
		"BEGIN; SELECT 1; COMMIT; SELECT 2", "BEGIN", "SAVEPOINT a", "SELECT 1/0", "ROLLBACK TO a", "SELECT 5", "COMMIT AND CHAIN", "SELECT 6", "ROLLBACK",
		"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", "INSERT INTO things VALUES (5)", "END", "BEGIN; SELECT 1/0; COMMIT", "COMMIT"),
	"two-phase": qs("BEGIN", "INSERT INTO things VALUES (7)", "PREPARE TRANSACTION 'tp'", "ROLLBACK PREPARED 'tp'"),
	"copy out":  qs("COPY things TO STDOUT", "COPY (SELECT g, repeat('z', 1000) FROM generate_series(1, 500) g) TO STDOUT (FORMAT binary)", "COPY none TO STDOUT", "COPY (SELECT 1/(3-g) FROM generate_series(1, 9) g) TO STDOUT"),
	"copy in": {
		upTo('G', &pgproto3.Query{String: "COPY strict FROM STDIN"}),
		{send: msgs(data("1\n2\n"), data("3\n"), done)},
		q("SELECT sum(id) FROM strict"),
		{send: msgs(&pgproto3.Query{String: "COPY strict FROM STDIN; SELECT count(*) FROM strict"}, data("4\n"), done)},
		upTo('G', &pgproto3.Query{String: "COPY strict FROM STDIN"}),
		{send: msgs(data("5\n"), fail)},
		upTo('G', &pgproto3.Query{String: "COPY strict FROM STDIN"}),
		{send: msgs(data("5\nx\n"), data("6\n"), done)},
		q("SELECT count(*) FROM strict"),
		{send: msgs(&pgproto3.Query{String: "COPY strict FROM STDIN; COPY strict FROM STDIN"}, data("7\n"), done, data("8\n"), done)},
		q("SELECT sum(id) FROM strict"),
		{send: msgs(&pgproto3.Query{String: "COPY none FROM STDIN"}, data("7\n"), done)},
		q("SELECT 1"),
	},
	"copy in, extended": {
		{send: msgs(prep("", "COPY strict FROM STDIN"), bind(""), do(), data("1\n"), done, syncMsg)},
		upTo('G', prep("", "COPY strict FROM STDIN"), bind(""), do(), syncMsg),
		{send: msgs(data("2\n"), done, syncMsg)},
		upTo('G', prep("", "COPY strict FROM STDIN"), bind(""), do(), flushMsg),
		{send: msgs(data("3\n"), syncMsg, data("4\n"), flushMsg, done, syncMsg)},
		q("SELECT sum(id) FROM strict"),
		upTo('G', prep("", "COPY strict FROM STDIN"), bind(""), do(), flushMsg),
		{send: msgs(data("5\n"), fail, syncMsg)},
		upTo('G', prep("", "COPY strict FROM STDIN"), bind(""), do(), flushMsg),
		{send: msgs(data("bad\n"), done, syncMsg)},
		{send: flight(msgs(prep("", "COPY strict FROM STDIN"), bind(""), do(), data("6\n"), done), run("SELECT sum(id) FROM strict"), msgs(syncMsg))},
		x(run("SELECT 1")...),
	},
	"copy fails around a sync": {
		upTo('G', prep("", "COPY strict FROM STDIN"), bind(""), do(), flushMsg),
		{send: msgs(data("1\n"), syncMsg, data("bad\n"), done, syncMsg)},
		x(run("SELECT 1")...), q("SELECT 3"),
		upTo('G', prep("", "COPY strict FROM STDIN"), bind(""), do(), flushMsg),
		{send: msgs(data("bad\n"), syncMsg, data("1\n"), done, syncMsg), n: 2},
		x(run("SELECT 4")...), q("SELECT 1/0"),
	},
	"copy ended twice":   {{send: msgs(&pgproto3.Query{String: "COPY strict FROM STDIN"}, data("1\n"), done, data("2\n"), done)}, q("SELECT 1"), x(run("SELECT 2")...)},
	"copy out, extended": {x(prep("", "COPY things TO STDOUT"), bind(""), describe('P', ""), do())},
	"extended": {
		x(run("SELECT $1::text, $2::int", "a", "7")...), x(run("")...), x(run("TABLE things")...), x(run("INSERT INTO things VALUES (9)")...),
		x(prep("", "SELECT $1::text, $2::int"), describe('S', "")), x(prep("", "DELETE FROM things WHERE id = $1"), describe('S', ""), bind("", "9"), describe('P', ""), do()),
		x(), syncs(3, syncMsg, syncMsg, syncMsg), x(prep("", "SELECT 1; SELECT 2")), x(prep("", "SELECT $1"), describe('S', "")), x(run("SELECT repeat('x', 200000)")...),
	},
	"formats": {
		x(prep("", "SELECT $1::int, $2::text, 3.5::numeric, $3::bytea, now() > 'epoch'"),
			&pgproto3.Bind{ParameterFormatCodes: []int16{1, 0, 1}, Parameters: [][]byte{{0, 0, 0, 5}, []byte("t"), {0, 255}}, ResultFormatCodes: []int16{1}},
			describe('P', ""), do()),
		x(prep("", "SELECT id, price FROM things ORDER BY id"), &pgproto3.Bind{ResultFormatCodes: []int16{1, 0}}, describe('P', ""), do()),
		x(&pgproto3.Parse{Query: "SELECT $1, $2", ParameterOIDs: []uint32{23, 25}}, &pgproto3.Bind{Parameters: [][]byte{nil, []byte("x")}}, describe('S', ""), do()),
	},
	"pipelines": {
		syncs(1, flight(run("SELECT 1"), run("SELECT 2"), run("INSERT INTO strict VALUES (1)"), run("SELECT count(*) FROM strict"), msgs(syncMsg))...),
		syncs(3, flight(run("SELECT 1"), msgs(syncMsg), run("SELECT 1/0"), run("SELECT 2"), msgs(syncMsg), run("SELECT 3"), msgs(syncMsg))...),
		syncs(2, flight(run("BEGIN"), run("SELECT 1"), msgs(syncMsg), run("SELECT 2"), run("COMMIT"), msgs(syncMsg))...),
		syncs(2, flight(run("BEGIN"), run("SELECT 1/0"), run("COMMIT"), msgs(syncMsg), run("ROLLBACK"), msgs(syncMsg))...),
		syncs(1, flight(run("INSERT INTO strict VALUES (5)"), run("INSERT INTO strict VALUES (0)"), run("SELECT 1"), msgs(syncMsg))...),
		q("SELECT id FROM strict ORDER BY 1"),
		syncs(2, flight(run("SELECT 1"), msgs(&pgproto3.Query{String: "SELECT 2"}), run("SELECT 3"), msgs(syncMsg))...),
		syncs(1, msgs(prep("", "SELEC"), &pgproto3.Query{String: "SELECT 2"}, prep("", "SELECT 3"), syncMsg)...),
		syncs(2, &pgproto3.Query{String: "SELECT 1"}, &pgproto3.Query{String: "SELECT 2"}),
	},
	"deferred constraint fails at sync": {
		x(run("INSERT INTO deferred VALUES (1), (1)")...), q("INSERT INTO deferred VALUES (1), (1)"), x(run("SELECT count(*) FROM deferred")...),
	},
	"flush": {
		upTo('1', prep("", "SELECT 1"), flushMsg), upTo('C', bind(""), do(), flushMsg), x(), upTo('n', prep("", "BEGIN"), bind(""), describe('P', ""), flushMsg), x(do()), q("ROLLBACK"),
		upTo('E', prep("", "SELEC"), flushMsg), x(prep("", "SELECT 1")), x(bind("")), upTo('1', prep("", "SELECT 1"), flushMsg), q("SELECT 5"), x(),
	},
	"portals": {
		x(prep("", "SELECT g FROM generate_series(1, 5) g"), bind(""), rows("", 2), rows("", 2), rows("", 2), rows("", 2)),
		q("BEGIN"), x(prep("", "SELECT g FROM generate_series(1, 7) g"), portal("p", ""), describe('P', "p"), rows("p", 3)), x(rows("p", 3)), x(rows("p", 3)), x(rows("p", 3)),
		x(shut('P', "p")), x(rows("p", 1)), q("ROLLBACK"), x(rows("p", 1)), x(describe('P', "p")), x(do()), x(shut('P', "p")),
		x(prep("", "SELECT 1"), portal("p", ""), portal("p", "")),
	},
	"named statements": {
		x(prep("s1", "SELECT 'mine', $1::text"), describe('S', "s1")), x(bind("s1", "a"), describe('P', ""), do()), x(describe('S', "s1")), q("SELECT 1"), x(bind("s1", "b"), do()),
		x(prep("s1", "SELECT 'again'")), x(bind("s1", "c"), do()), x(bind("none")), x(describe('S', "none")), x(shut('S', "none")),
		x(shut('S', "s1")), x(bind("s1", "d")), x(prep("s1", "SELECT 'new'")), x(bind("s1"), do()), x(shut('S', "s1"), prep("s1", "SELECT 'third'"), bind("s1"), do()),
		x(bind("s1"), do()), x(prep("s2", "SELEC")), x(bind("s2")), x(prep("s2", "SELECT 2"), prep("s3", "SELEC"), prep("s4", "SELECT 4")), x(bind("s2"), do()), x(bind("s3")), x(bind("s4")),
		x(bind("s1", "too", "many")), x(bind("s1"), do()),
		q("BEGIN"), x(prep("s5", "SELECT 5"), bind("s5"), do()), q("ROLLBACK"), x(bind("s5"), do()), x(shut('S', "s2"), prep("s2", "SELEC"), shut('S', "s5")), x(bind("s2")), x(bind("s5"), do()),
		syncs(2, bind("s1"), do(), syncMsg, bind("s5"), do(), syncMsg),
	},
	"unnamed statement": {
		x(prep("", "SELECT 'u'")), x(bind(""), do()), x(describe('S', "")), q("SELECT 1"), x(bind(""), do()), x(prep("", "SELECT 'v'")), x(prep("", "SELEC")), x(bind("")),
		x(prep("", "SELECT 'w'")), x(shut('S', "")), x(bind("")), x(prep("", "SELECT 'x'"), bind("none"), prep("", "SELECT 'y'")), x(bind(""), do()),
		x(prep("", "SELECT 'z'")), syncs(1, bind("none"), &pgproto3.Query{String: "SELECT 1"}, syncMsg), x(bind(""), do()), x(prep("", "SELECT 1 FROM things WHERE id = $1")), x(bind("", "zz"), do()), x(bind("", "1"), do()),
	},
	"malformed": {
		{raw: []byte("B\x00\x00\x00\x07\x00\x00\x00"), send: nil, until: 'E'},
		x(),
		{raw: []byte("D\x00\x00\x00\x06X\x00"), until: 'E'},
		x(),
		{raw: []byte("C\x00\x00\x00\x06X\x00"), until: 'E'},
		x(),
		{raw: []byte("E\x00\x00\x00\x05\x00"), until: 'E'},
		x(), q("SELECT 1"),
		{raw: []byte("Q\x00\x00\x00\x0aSEL\xff1\x00")},
		q("SELECT 1"),
	},
	"stray data":  {{send: msgs(data("x"), done, fail, flushMsg, &pgproto3.Query{String: "SELECT 1"})}, {send: msgs(prep("", "SELECT 2"), bind(""), data("x"), done, do(), syncMsg)}, q("SELECT 3")},
	"big bind":    {x(run("SELECT length($1), md5($1)", strings.Repeat("z", 1<<20))...), x(run("SELECT length($1)", strings.Repeat("z", 9000))...)},
	"long text":   qs("SELECT '" + strings.Repeat("x", 20000) + "'"),
	"set":         qs("SET TimeZone = 'Asia/Tokyo'", "SHOW TimeZone", "SET LOCAL work_mem = '2MB'", "RESET TimeZone", "SELECT set_config('DateStyle', 'German', false)", "SELECT '2024-02-01'::date", "SET application_name = 'me'"),
	"sql prepare": append(qs("PREPARE s1 AS SELECT 'sql', $1::text", "EXECUTE s1('a')", "PREPARE s1 AS SELECT 2"), x(bind("s1", "b"), do()), x(prep("s1", "SELECT 3")), q("DEALLOCATE s1"), q("EXECUTE s1('c')"), x(bind("s1"))),
	"pin with statements": {
		x(prep("s1", "SELECT 'one', $1::int")), x(prep("s2", "SELECT 'two'")), x(prep("", "SELECT 'u'")), q("SET work_mem = '1MB'"),
		q("SELECT name, statement, from_sql FROM pg_prepared_statements ORDER BY name"), x(bind("s1", "1"), do()), q("DEALLOCATE s1"), x(bind("s1", "2"), do()),
		x(prep("s1", "SELECT 'new'")), x(bind("s1"), do()), q("DEALLOCATE ALL"), x(bind("s2"), do()), x(prep("s2", "SELECT 'newer'"), bind("s2"), do()), q("DISCARD ALL"), x(bind("s2")), x(shut('S', "s2")),
	},
	"pin by parse": {
		x(prep("s1", "SELECT 'one'")), x(prep("", "SET work_mem = '1MB'"), bind(""), do()), q("SHOW work_mem"), x(bind("s1"), do()), q("SELECT name FROM pg_prepared_statements"),
	},
	"pin in a transaction": {
		x(prep("s1", "SELECT 'one'")), q("BEGIN"), x(run("SET LOCAL work_mem = '1MB'")...), x(bind("s1"), do()), q("SELECT 1/0"), q("SET work_mem = '2MB'"), q("ROLLBACK"), x(bind("s1"), do()), q("SHOW work_mem"),
	},
	"pin in a pipeline": {
		x(prep("s1", "SELECT 'one'")), syncs(2, flight(run("SELECT 1"), run("SET work_mem = '1MB'"), msgs(bind("s1"), do(), syncMsg), run("SHOW work_mem"), msgs(syncMsg))...), x(prep("s1", "SELECT 2")),
	},
	"cursors":           qs("BEGIN", "DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 4)", "FETCH 2 FROM c", "COMMIT", "FETCH 1 FROM c", "CLOSE c", "FETCH c"),
	"sequences":         qs("CREATE TEMP SEQUENCE sq", "SELECT nextval('sq')", "SELECT currval('sq')", "SELECT lastval()"),
	"function call":     {{send: msgs(&pgproto3.FunctionCall{Function: 1397, ArgFormatCodes: []uint16{0}, Arguments: [][]byte{[]byte("-5")}, ResultFormatCode: 0})}, {send: msgs(&pgproto3.FunctionCall{Function: 1})}, q("SELECT 1")},
	"listen":            qs("LISTEN c", "UNLISTEN c"),
	"session advisory":  qs("SELECT pg_advisory_lock(1)", "SELECT pg_advisory_unlock(1)", "SELECT pg_advisory_unlock(1)"),
	"terminates itself": {{send: msgs(&pgproto3.Query{String: "SELECT pg_terminate_backend(pg_backend_pid())"}), n: 1}},
}

// TestAnswersAreThoseOfADirectConnection compares byte for byte, also while another
// client moves this one from server connection to server connection and leaves
// statements of the same names behind.
func TestAnswersAreThoseOfADirectConnection(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 2})
	admin := p.direct(t)
	query(t, admin, corpusSchema)
	for name, steps := range corpus {
		// One after the other: they use the same rows.
		t.Run(name, func(t *testing.T) {
			query(t, admin, corpusRows)
			want := play(t, openWire(t, server(t).URL(p.database)), steps, func(int) {})
			for _, noisy := range []bool{false, true} {
				query(t, admin, corpusRows)
				between := func(int) {}
				if noisy {
					between = noise(p.wire(t))
				}
				w := p.wire(t)
				got := play(t, w, steps, between)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("noisy %v: answers differ (-direct +proxy):\n%s", noisy, diff)
				}
				_ = w.conn.Close()
			}
		})
	}
}

// play sends a script's steps and returns the answers.
func play(t *testing.T, w *wire, steps []step, between func(i int)) []string {
	t.Helper()
	var got []string
	for i, s := range steps {
		between(i)
		w.write(append(encode(t, s.send...), s.raw...))
		until, n := s.until, s.n
		if until == 0 {
			until = 'Z'
		}
		for _, frame := range w.read(until, max(n, 1)) {
			if len(frame) > 200 {
				frame = fmt.Sprintf("%.100s... %d bytes, checksum %x", frame, len(frame), checksum(frame))
			}
			got = append(got, fmt.Sprintf("%d %s", i, frame))
		}
	}
	return got
}

func checksum(s string) uint32 {
	var sum uint32
	for _, b := range []byte(s) {
		sum = sum*31 + uint32(b)
	}
	return sum
}

// noise leaves other statements behind, and every other time keeps the server
// connection that the client would get.
func noise(w *wire) func(int) {
	return func(i int) {
		name := fmt.Sprintf("s%d", i%5+1)
		w.send(shut('S', name), prep(name, "SELECT 'noise'"), prep("", "SELECT 'unnamed noise'"), bind(name), do(), syncMsg)
		w.answer('Z', 1)
		w.sql([]string{"BEGIN", "COMMIT"}[i%2])
	}
}
