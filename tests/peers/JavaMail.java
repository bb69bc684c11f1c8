import java.util.Properties;
import javax.mail.Message;
import javax.mail.Session;
import javax.mail.Transport;
import javax.mail.internet.InternetAddress;
import javax.mail.internet.MimeMessage;

/** JavaMail as a client: several messages over one connection, DSN, 8BITMIME, SMTPUTF8. Argument: the port. */
public final class JavaMail {
    public static void main(String[] arguments) throws Exception {
        Properties settings = new Properties();
        settings.put("mail.smtp.host", "127.0.0.1");
        settings.put("mail.smtp.port", arguments[0]);
        settings.put("mail.smtp.localhost", "DESKTOP-ÄÖ");
        settings.put("mail.smtp.allow8bitmime", "true");
        settings.put("mail.mime.allowutf8", "true");
        settings.put("mail.smtp.dsn.notify", "FAILURE,DELAY");
        settings.put("mail.smtp.dsn.ret", "HDRS");
        settings.put("mail.smtp.from", "erin@fabrikam.com");
        Session session = Session.getInstance(settings);
        try (Transport transport = session.getTransport("smtp")) {
            transport.connect();
            String[][] messages = {
                {"plain", "julie@contoso.com", "hello\n.\n..dots\nend"},
                {"Grüße", "julie@contoso.com, david@contoso.com", "Grüße\n"},
                {"international", "jülie@contoso.com", "hello"},
            };
            for (String[] each : messages) {
                MimeMessage message = new MimeMessage(session);
                message.setFrom(new InternetAddress("erin@fabrikam.com"));
                message.setRecipients(Message.RecipientType.TO, each[1]);
                message.setSubject(each[0], "UTF-8");
                message.setText(each[2], "UTF-8");
                message.setHeader("Content-Transfer-Encoding", "8bit");
                message.saveChanges();
                transport.sendMessage(message, message.getAllRecipients());
                System.out.println(each[0]);
            }
        }
    }
}
