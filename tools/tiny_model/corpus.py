"""Plain English that gives the tokenizer common words and word parts beyond those of the questions."""

GENERAL_ENGLISH = """\
The quick brown fox jumps over the lazy dog while the sun is shining and the birds are singing in the garden.
When the morning came, the people of the village walked along the river to the market and talked about the weather.
She said that he would have been there before them, but they could not find the right way through the old forest.
A picture of a small house with a door, two windows and a roof stands on the table next to a glass of water.
Please tell me something about this image, and explain how you came to your answer in one short sentence.
Look at the first picture, then look at the second picture, and compare what is different between the two of them.
I would like to know whether there is anything else that you can show, because I want to understand it better.
There was once a child who loved to draw with pencils, paper and paint, and who made a new drawing every day.
Numbers such as one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, twenty and a hundred.
Colours such as red, orange, yellow, green, blue, purple, black, white, grey, gray, brown and pink are all around us.
Shapes like circles, squares, triangles, lines, boxes, stars, hearts, rings, dots and rectangles have names.
Things move to the left or to the right, up or down, fast or slowly, forward or backward, and sometimes they stop.
Above, below, beside, behind, between, near, inside, outside, under, over, around, across and in front of something.
Who, what, when, where, why, which, whose and how are words that begin a question and ask for an answer.
Yes, no, maybe, perhaps, always, never, often, again, also, already, almost, enough, together, without and against.
The first, second, third, fourth, fifth, next and last page of the book are missing from the library on the hill.
Computers read, write, learn, store and send information over a network of many machines that work with one another.
A model takes words and pictures as its input and returns text as its output, one token after another, until the end.
My friend lives in a large city with many streets, trains, shops, schools, parks, bridges and a very tall tower.
In the evening we eat bread, cheese, apples and soup, drink tea or coffee, and listen to music on the radio.
It is important to think before you speak, to be kind, to help others, and to keep trying when something is difficult.
Could you please give me more details? Should we go there today or tomorrow? May I ask you another question?
The government, the company, the university and the hospital are public places where a great number of people work.
During the last hundred years the world has changed a lot: travel, health, science and communication have improved.
He took the key from his pocket, opened the heavy door, turned on the light and found the room completely empty.
We have seen that the result is good, the method is simple, the cost is low and the idea can be used by everyone.
Write a short story, a poem, a letter or a list; then read it aloud, check each line, and correct the mistakes.
Summer, autumn, winter and spring; Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.
This is where the story begins, that is how it goes on, these are the people in it, and those are the things they did.
Please describe, count, name, find, compare, list, explain, choose, answer, show, help, repeat and continue.
"""
