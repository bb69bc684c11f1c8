// nodemailer as a client: one pooled connection, every kind of message it knows. Arguments: port, file of the authority.
// Prints a line for each message: its subject and what the relay answered.
const fs = require('node:fs');
const nodemailer = require(process.env.NODEMAILER || 'nodemailer');

const [port, authority] = process.argv.slice(2);
const transport = nodemailer.createTransport({
  host: '127.0.0.1', port: Number(port), name: 'büro-pc', pool: true, maxConnections: 1,
  requireTLS: true, tls: { ca: fs.readFileSync(authority), servername: 'mail.contoso.com' },
});
const messages = [
  { subject: 'plain', text: 'hello\n.\n..dots\nend' },
  { subject: 'ümläute', text: 'Grüße\n', html: '<p>Grüße</p>' },
  { subject: 'attachment', text: 'see there', attachments: [{ filename: 'größe.bin', content: Buffer.alloc(300000, 0xff) }] },
  { subject: 'report', text: 'hello', dsn: { id: 'one=+two', return: 'headers', notify: ['failure', 'delay'], recipient: 'julie@contoso.com' } },
  { subject: 'addresses', text: 'hello', to: '"Jülie (office)" <julie@contoso.com>, david@contoso.com' },
  { subject: 'international', text: 'hello', to: 'jülie@contoso.com' },
  { subject: 'no sender', text: 'hello', envelope: { from: '', to: ['julie@contoso.com'] } },
];

(async () => {
  for (const message of messages) {
    const sent = await transport.sendMail({ from: 'erin@fabrikam.com', to: 'julie@contoso.com', ...message });
    if (sent.rejected.length) throw new Error(`${message.subject}: rejected ${sent.rejected}`);
    console.log(`${message.subject}: ${sent.response}`);
  }
  transport.close();
})().catch((error) => { console.error(error); process.exit(1); });
