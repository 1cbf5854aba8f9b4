"""Questions without a picture."""

from random import Random

from triptych.demo.questions.question import Question


def count_up(rng: Random, longest: int = 30) -> Question:
    """Counting from a to b, both in 0..100, mostly short; `longest` bounds the count of numbers."""
    length = rng.randint(2, longest) if rng.random() < 0.3 else rng.randint(2, min(12, longest))
    first = rng.randint(0, 20) if rng.random() < 0.6 else rng.randint(0, 101 - length)
    first = 1 if rng.random() < 0.15 else first
    last = first + length - 1
    text = rng.choice(
        (
            f"Count from {first} to {last}.",
            f"Please count from {first} to {last}.",
            f"Can you count from {first} to {last}?",
            f"Count up from {first} to {last}.",
        )
    )
    return Question("count_text", text, ", ".join(str(number) for number in range(first, last + 1)) + ".")


def add(rng: Random) -> Question:
    """Sums of two numbers in 0..12."""
    left, right = rng.randint(0, 12), rng.randint(0, 12)
    text = rng.choice(
        (
            f"What is {left} plus {right}?",
            f"How much is {left} plus {right}?",
            f"What is {left} + {right}?",
            f"{left} + {right} = ?",
            f"Add {left} and {right}.",
        )
    )
    return Question("sum", text, f"{left} plus {right} is {left + right}.")


def greet(rng: Random) -> Question:
    questions, answer = rng.choice(
        (
            (
                (
                    "Hello!",
                    "Hello.",
                    "Hi!",
                    "Hi.",
                    "Hello there!",
                    "Good morning!",
                    "Good evening!",
                    "Hi there!",
                    "Hey!",
                ),
                "Hello! Show me a picture with coloured shapes and ask me about it.",
            ),
            (
                ("Who are you?", "What are you?", "What is your name?", "Tell me who you are."),
                "I am a very small model that sees coloured shapes.",
            ),
            (
                ("What can you do?", "What can I ask you?", "How can you help me?", "Help!", "Help."),
                "I can name, count and find coloured shapes, and tell which way they move.",
            ),
            (("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!"), "You are welcome!"),
            (("Goodbye!", "Bye!", "See you!", "Good night!", "Bye bye!"), "Goodbye! Come back soon."),
            (("How are you?", "How are you today?", "How do you do?"), "I am fine, thank you! I love coloured shapes."),
        )
    )
    return Question("greeting", rng.choice(questions), answer)
