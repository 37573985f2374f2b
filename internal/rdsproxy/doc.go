// Package rdsproxy is a stand-in for Amazon RDS Proxy: a PostgreSQL proxy for
// tests and for development that multiplexes and pins as the original says that
// it does.
//
// [New] takes a [Config], [Proxy.Serve] accepts clients on a listener until its
// context ends. Clients authenticate against Config.Users, by SCRAM-SHA-256 or by
// password over TLS. The proxy logs in to the server as the same user and to the
// same database.
//
// # Multiplexing
//
// Each pair of user and database has at most Config.PoolSize server connections.
// (The original bounds all databases of a server together.) A client borrows one
// with its first message and gives it back when everything that it sent has been
// answered, a Sync or a simple query was the last of it, and no transaction is
// open. Clients that find none wait in a queue, first come, first served.
//
// Bytes pass unchanged in both directions. The exceptions are the start of a
// connection, and prepared statements: a client's own are made on whichever server
// connection it has got, and another client's are closed when the names meet. The
// messages for that are added by the proxy and their answers taken out.
//
// Two differences remain. In an aborted transaction, an error may be 25P02 of an
// added message where the client's own would have failed for another reason. A COPY
// that fails after the client has sent a Sync among its data leaves the proxy unable
// to count answers: that client keeps its server connection from then on, which is a
// finding, and its statements are not looked after.
//
// What SQL hides from the proxy, such as a DEALLOCATE in the body of a DO, may change
// prepared statements unseen. A server connection that has answered 26000 or 42P05 is
// closed when its client needs it no more.
//
// # Pinning
//
// Each text of a Query or Parse message is read by package pinning before it is
// forwarded. A construct that pins makes the client keep its server connection
// until it leaves; that connection is then closed. So does a FunctionCall message.
// Named statements, named portals, and an unnamed statement that is used in a later
// transaction than the one that parsed it work, but nobody promises them: they are
// recorded as a [Finding] that does not pin. So is a text that is not in PostgreSQL's
// grammar: nobody knows what it holds, and a server may read it all the same.
//
// # Refused
//
// Startup parameters other than user, database, application_name and
// client_encoding (UTF8 only), where the first two alone reach the server; cancel
// requests, which are closed unanswered and without effect; channel binding.
//
// # Guarantees
//
// Whatever a client sends, or does not read, costs that client its connection and
// nobody else anything but its place in the queue. Results are not buffered. No
// goroutine outlives Serve.
//
// It never retries a statement, never cancels one, and never serves production.
package rdsproxy
